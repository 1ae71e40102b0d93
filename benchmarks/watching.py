"""What a guest's own work loses while it is watched: nothing that can be measured."""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.pairs import Row, interval, qemus, ratios
from qtrace.lab.block_load import bench_command, storage_daemon
from qtrace.lab.guest import Guest
from qtrace.process.process import Process
from qtrace.record.ebpf.bpf_program import load_watch
from qtrace.record.ebpf.ebpf_recorder import EbpfProbes
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.watch import plan_watch

WINDOW_S = 0.2
REQUESTS = 3000


def run(pairs: int) -> list[Row]:
    """The pflash guest's writes (an aio_poll() each, at least), and a storage daemon's requests."""
    rows = []
    for version, qemu in qemus():
        for accel in ("tcg", "kvm"):
            with Guest(qemu, accel) as guest:
                watch = _Watch(guest.pid, ())
                rate = flash_writes(guest.pid)
                rows.append(_row(f"{version} {accel}: pflash writes/s", pairs, rate, watch))
        with served_disk(qemu) as (pid, url):
            watch = _Watch(pid, ("*",))
            work = _bench(qemu.with_name("qemu-img"), url)
            rows.append(_row(f"{version}: qemu-img bench, storage daemon", pairs, work, watch))
    return rows


class _Watch:
    """Measures with the probes armed, and counts what they hit."""

    def __init__(self, pid: int, patterns: tuple[str, ...]) -> None:
        process = Process(pid)
        module = process.binary
        self._plan = plan_watch(scan_module(module), module, patterns)
        program = load_watch()
        uprobes = Uprobes(pid, process.exe, module.elf.offset_of)
        self._probes = EbpfProbes(uprobes, program, pid)
        self.hits = 0

    def __call__(self, measure: Callable[[], float]) -> float:
        self._probes.attach(self._plan.sites)
        try:
            value = measure()
            self.hits += len(self._probes.drain())
        finally:
            self._probes.close()
        return value


def _row(name: str, pairs: int, measure: Callable[[], float], watch: _Watch) -> Row:
    generator = random.Random(2111)
    same, ours = [], []
    for _ in range(pairs):
        same += ratios(1, measure, measure, generator)
        ours += ratios(1, lambda: watch(measure), measure, generator)
    low, high = interval(same, generator)
    return (
        name,
        f"{pairs} pairs, {watch.hits} probe hits",
        f"{statistics.median(ours):.3f}",
        f"A/A {statistics.median(same):.3f} [{low:.3f}, {high:.3f}]",
        "inside the A/A interval, 0 hits",
    )


def flash_writes(pid: int) -> Callable[[], float]:
    """Writes per second: each byte that the guest programs is one pwrite64()."""

    def writes() -> int:
        fields = Path(f"/proc/{pid}/io").read_text().split()
        return int(fields[fields.index("syscw:") + 1])

    def measure() -> float:
        before, began = writes(), time.monotonic()
        time.sleep(WINDOW_S)
        return (writes() - before) / (time.monotonic() - began)

    return measure


def _bench(image: Path, url: str) -> Callable[[], float]:
    command = bench_command(image, url, REQUESTS, depth=8)

    def measure() -> float:
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return REQUESTS / (time.monotonic() - began)

    return measure


@contextmanager
def served_disk(qemu: Path, iothread: bool = False) -> Iterator[tuple[int, str]]:
    """A disk of 1 MiB that a storage daemon serves; see ``storage_daemon``."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        disk.write_bytes(bytes(1 << 20))
        program = qemu.with_name("qemu-storage-daemon")
        with storage_daemon(program, disk, "io" if iothread else None) as served:
            yield served
