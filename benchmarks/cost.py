"""Whose processor time `run --all` takes: the program's own, beside an empty one at the same sites,
and the recorder's on another processor. Other work disturbs that less than times on the clock."""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.all_events import DISK_BYTES, empty_probes
from benchmarks.pairs import Row, qemus
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.lab.block_load import bench_command, disk_image
from qtrace.record.child import Child
from qtrace.record.launch import launch
from qtrace.record.loop import record
from qtrace.record.recording_options import Limits, RecordingOptions

REQUESTS = 100_000
ROUNDS = 9
MICRO = 1e6
# Of the program, of the recorder, in seconds; events.
Cost = tuple[float, float, int]


def run(pairs: int) -> list[Row]:
    """``pairs`` beyond 100 add rounds in proportion. The best of them counts, with the median."""
    rows = []
    rounds = max(ROUNDS * pairs // 100, 3)
    for version, qemu in qemus():
        image = qemu.with_name("qemu-img")
        with tempfile.TemporaryDirectory() as folder:
            disk = disk_image(Path(folder), DISK_BYTES)
            for name, options in (("thread pool", ()), ("native aio", ("-n",))):
                command = bench_command(image, disk, REQUESTS, *options)
                modes: dict[str, Callable[[], Cost]] = {
                    "nothing": partial(_bare, command),
                    "floor": partial(_floor, command, image),
                    "all": partial(_recorded, command, Path(folder, "all.raw")),
                }
                rows.append(_row(f"{version}: qemu-img bench, {name}", modes, rounds))
    return rows


def _row(name: str, modes: dict[str, Callable[[], Cost]], rounds: int) -> Row:
    took: dict[str, list[Cost]] = {mode: [] for mode in modes}
    generator = random.Random(2111)
    for _ in range(rounds):
        for mode in generator.sample(list(modes), len(modes)):
            took[mode].append(modes[mode]())
    best = {mode: min(cost[0] for cost in costs) for mode, costs in took.items()}
    usual = {mode: statistics.median(cost[0] for cost in costs) for mode, costs in took.items()}
    events = took["all"][0][2]
    recorder = min(cost[1] for cost in took["all"])

    def added(times: dict[str, float], mode: str) -> float:
        return (times[mode] - times["nothing"]) / events * MICRO

    floor, ours = added(best, "floor"), added(best, "all")
    return (
        f"{name}: processor time that --all adds, {events:,} events",
        f"{ours:.2f} us each ({added(usual, 'all'):.2f}), and {recorder / events * MICRO:.2f} of "
        "the recorder",
        f"{ours / floor:.2f}",
        f"the floor {floor:.2f} us ({added(usual, 'floor'):.2f}); the best of {rounds} rounds, "
        "and medians",
        "at most 1.5",
    )


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _bare(command: list[str]) -> Cost:
    before = _cpu(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return _cpu(resource.RUSAGE_CHILDREN) - before, 0.0, 0


def _floor(command: list[str], image: Path) -> Cost:
    before = _cpu(resource.RUSAGE_CHILDREN)
    with open(os.devnull, "w") as nowhere:
        child = Child(command, nowhere.fileno())
        with empty_probes(child.pid, child.path, Module(Elf(image), 0)):
            child.release()
            child.go()
            child.wait()
    return _cpu(resource.RUSAGE_CHILDREN) - before, 0.0, 0


def _recorded(command: list[str], raw: Path) -> Cost:
    before = _cpu(resource.RUSAGE_CHILDREN)
    with open(os.devnull, "w") as nowhere:
        options = RecordingOptions(raw, force=True, everything=True)
        recording, child = launch(command, options, output_fd=nowhere.fileno())
        begun = _cpu(resource.RUSAGE_SELF)
        with recording:
            record(recording, Limits(), lambda: "", lambda text: print(text, file=sys.stderr))
            own = _cpu(resource.RUSAGE_SELF) - begun
        child.wait()
    assert recording.everything is not None
    counts = recording.everything.counts
    if counts.lost or counts.produced != counts.written:
        raise RuntimeError(f"events are missing: {counts}")
    return _cpu(resource.RUSAGE_CHILDREN) - before, own, counts.written
