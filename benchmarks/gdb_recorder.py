"""What recording by gdb costs a guest: the pause to attach, and its rate meanwhile."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Callable

from benchmarks.pairs import Row, interval, qemus, ratios
from benchmarks.watching import flash_writes
from qtrace.lab.guest import Guest
from qtrace.process.process import Process
from qtrace.record.gdb_recorder import GdbProbes
from qtrace.sites.scan_cache import scan_module
from qtrace.sites.watch import plan_watch


def run(pairs: int) -> list[Row]:
    """Beside it what a plain gdb -p needs to attach and detach."""
    rows = []
    for version, qemu in qemus():
        for accel in ("tcg", "kvm"):
            with Guest(qemu, accel) as guest:
                rows += _rows(f"{version} {accel}", guest, pairs)
    return rows


def _rows(name: str, guest: Guest, pairs: int) -> list[Row]:
    generator = random.Random(2111)
    rate = flash_writes(guest.pid)
    pauses: list[float] = []
    same, ours = [], []
    for _ in range(pairs):
        same += ratios(1, rate, rate, generator)
        ours += ratios(1, lambda: _recorded(guest.pid, rate, pauses), rate, generator)
    low, high = interval(same, generator)
    plain = statistics.median(_plain_gdb(guest.pid) for _ in range(3))
    return [
        (
            f"{name}: guest paused when the gdb recorder attaches",
            f"{pairs} times, most {max(pauses):.0f} ms",
            f"{statistics.median(pauses):.0f} ms",
            f"gdb -p, attach and detach: {plain:.0f} ms",
            "at most 500 ms",
        ),
        (
            f"{name}: pflash writes/s while gdb records",
            f"{pairs} pairs",
            f"{statistics.median(ours):.3f}",
            f"A/A {statistics.median(same):.3f} [{low:.3f}, {high:.3f}]",
            "at least 0.9",
        ),
    ]


def _recorded(pid: int, measure: Callable[[], float], pauses: list[float]) -> float:
    process = Process(pid)
    module = process.binary
    probes = GdbProbes(process)
    probes.attach(plan_watch(scan_module(module), module).sites)
    try:
        pauses.append(probes.pauses_ms()["attach"])
        return measure()
    finally:
        probes.close()


def _plain_gdb(pid: int) -> float:
    """Milliseconds of a gdb as one would start it; the guest stands still for most of them."""
    began = time.monotonic()
    subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", "-p", str(pid),
         "-ex", "detach"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return (time.monotonic() - began) * 1000
