"""What `monitor --stats` costs, beside an empty program at the same places.

Of a loop of our own, whose steps are as a bottom half's schedule, run and return: nothing else is
measured there. And the processor time that it adds to a storage daemon's requests, which others on
the machine change less than how long they take. In rounds of one run of each, in random order.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.floor import empty_at
from benchmarks.pairs import Row, interval, qemus
from benchmarks.watching import served_disk
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.host.bpf_syscall import SMALLEST_PROGRAM, TRACE_UPROBE_MULTI, load_program
from qtrace.host.uprobe_links import links_work
from qtrace.lab.block_load import bench_command
from qtrace.machine.architectures import HOST
from qtrace.process.process import Process
from qtrace.record.all_events.sums import Sums
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.sites.all_plan import AllPlan, AllSite
from qtrace.sites.all_sites import plan_all

REQUESTS = 30_000
ROUNDS = 15
# mov ecx, esi; xor eax, eax; again: nop; nop; nop; dec ecx; jnz again; ret. It has the bottom half
# in rdi, and its old flags, none, in rax.
LOOP = bytes.fromhex("89f1 31c0 90 90 90 ffc9 75f9 c3")
PLACES = {"enqueue": 4, "run": 5, "return": 6}
LOOP_TURNS, LOOP_ROUNDS = 2_000, 300
GOALS = {"durations": 1.5, "durations and waits": 2.0}
Measure = Callable[[], float]


def run(pairs: int) -> list[Row]:
    """``pairs`` beyond 100 add rounds in proportion."""
    rows = _loop_rows(max(LOOP_ROUNDS * pairs // 100, 10))
    for version, qemu in qemus():
        iothread = not version.startswith("7.")
        with served_disk(qemu, iothread) as (pid, url):
            command = bench_command(qemu.with_name("qemu-img"), url, REQUESTS)
            what = "storage daemon, IOThread" if iothread else "storage daemon"
            rows += _rows(
                f"{version}: {what}", Process(pid), command, max(ROUNDS * pairs // 100, 3)
            )
    return rows


def _loop_rows(rounds: int) -> list[Row]:
    """Seconds a turn, in medians of rounds."""
    bh = ctypes.create_string_buffer(64)
    sums = {what: Sums(_plan_of_loop(), waits=what != "durations") for what in GOALS}
    with tempfile.NamedTemporaryFile(prefix="qtrace-loop-") as file:
        file.write(LOOP)
        file.flush()
        # Not writable: such a mapping takes no uprobe.
        code = mmap.mmap(
            file.fileno(), len(LOOP), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC
        )
        start = np.frombuffer(code, np.uint8).ctypes.data
        loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(start)

        def timed() -> float:
            began = time.perf_counter()
            loop(bh, LOOP_TURNS)
            return (time.perf_counter() - began) / LOOP_TURNS

        empty = load_program(SMALLEST_PROGRAM, "empty", TRACE_UPROBE_MULTI if links_work() else 0)
        generator = random.Random(2111)
        rows: list[Row] = []
        for what, goal in GOALS.items():
            of_ours = list(sums[what].probes())
            ways = {"bare": [], "empty": [(empty, labels) for _fd, labels in of_ours],
                    "ours": of_ours}  # fmt: skip
            took: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way in generator.sample(list(ways), len(ways)):
                    uprobes = Uprobes(os.getpid(), file.name, lambda offset: offset)
                    uprobes.attach_all(ways[way])
                    took[way].append(timed())
                    uprobes.close()
            bare = statistics.median(took["bare"])
            ours, other = (statistics.median(took[way]) - bare for way in ("ours", "empty"))
            ratios = [
                (one - bare) / (two - bare)
                for one, two in zip(took["ours"], took["empty"], strict=True)
            ]
            low, high = interval(ratios, generator)
            counted = sum(s.runs.count for of in sums[what].read().values() for s in of)
            assert counted == rounds * LOOP_TURNS
            rows.append((
                f"a bottom half of a loop of ours: {what}", f"{ours * 1e6:.2f} us",
                f"{statistics.median(ratios):.2f}",
                f"[{low:.2f}, {high:.2f}] of {other * 1e6:.2f} us by an empty program at the same "
                f"{sum(len(labels) for _fd, labels in of_ours)} places, {rounds} rounds; "
                f"{counted} runs counted, {sums[what].lost()} lost",
                f"at most {goal:g}",
            ))  # fmt: skip
            sums[what].close()
        os.close(empty)
    return rows


def _plan_of_loop() -> AllPlan:
    (_version, qemu), *_ = qemus()
    plan = plan_all(Module(Elf(qemu), 0))
    rdi = {"BH": HOST.register_offset("rdi")}
    same = plan.programs["run"][1]
    programs = {
        "enqueue": ("enqueue", {**same, **rdi, "NEW_FLAGS_ARE_KNOWN": 0, "NEW_FLAGS": 0}),
        "run": ("run", {**same, **rdi, "RUN_DEPTH": 0, "RUN_IF_EQUAL": 0}),
        "return": ("ended", {}),
    }
    sites = tuple(AllSite(kind, "loop", at, kind, "nop", True) for kind, at in PLACES.items())
    return replace(plan, sites=sites, programs=programs)


def _rows(name: str, process: Process, command: list[str], rounds: int) -> list[Row]:
    module = process.binary
    sums = {what: Sums(plan_all(module), waits=what != "durations") for what in GOALS}
    places = {what: one.labels for what, one in sums.items()}

    def bare() -> float:
        before = _cpu_s(process.pid)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return _cpu_s(process.pid) - before

    def floor(what: str) -> float:
        with empty_at(process.pid, process.exe, module, places[what]):
            return bare()

    def ours(what: str) -> float:
        with _timing(sums[what], process):
            return bare()

    modes: dict[str, Measure] = {"nothing": bare}
    for what in GOALS:
        modes[f"an empty program at the places of {what}"] = lambda what=what: floor(what)  # type: ignore[misc]
        modes[what] = lambda what=what: ours(what)  # type: ignore[misc]
    bare()
    took: dict[str, list[float]] = {mode: [] for mode in modes}
    generator = random.Random(2111)
    for _ in range(rounds):
        for mode in generator.sample(list(modes), len(modes)):
            took[mode].append(modes[mode]())
    nothing = took["nothing"]
    rows = [
        (f"{name}: nothing", f"{statistics.median(nothing):.2f} s", "1", f"{rounds} rounds", "-")
    ]
    for what, goal in GOALS.items():
        empty = took[f"an empty program at the places of {what}"]
        pairs = list(zip(took[what], empty, nothing, strict=True))
        added = [ours - bare for ours, _empty, bare in pairs]
        least = [empty - bare for _ours, empty, bare in pairs]
        ratios = [one / other for one, other in zip(added, least, strict=True) if other > 0]
        low, high = interval(ratios, generator)
        lost = sums[what].lost()
        counted = sum(one.runs.count for of in sums[what].read().values() for one in of)
        rows.append((
            f"{name}: {what}", f"{statistics.median(took[what]):.2f} s",
            f"{statistics.median(t / b for t, _e, b in pairs):.2f}",
            f"{statistics.median(added) / statistics.median(least):.2f} "
            f"[{low:.2f}, {high:.2f}] of what an empty program adds "
            f"({statistics.median(e / b for _t, e, b in pairs):.2f}); "
            f"{counted} runs counted, {lost} lost",
            f"at most {goal:g} of it",
        ))  # fmt: skip
        sums[what].close()
    return rows


@contextmanager
def _timing(sums: Sums, process: Process) -> Iterator[None]:
    uprobes = Uprobes(process.pid, process.exe, process.binary.elf.offset_of)
    try:
        uprobes.attach_all(sums.probes())
        yield
    finally:
        uprobes.close()
        sums.forget_pending(process.pid)


def _cpu_s(pid: int) -> float:
    """Of all threads that there are."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
