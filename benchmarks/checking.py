"""What a guest's own work loses beside ``qtrace check``: nothing that can be measured."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from benchmarks.pairs import Row, interval, qemus
from qtrace.lab.guest import Accelerator, Guest

# As long as a check takes, its start included.
WINDOW_S = 11.0
# One accelerator on each QEMU: a hundred pairs take 40 minutes.
ACCELERATORS: tuple[Accelerator, ...] = ("tcg", "kvm")


def run(pairs: int) -> list[Row]:
    """The pflash guest's writes per second: beside a check, and alone, each pair in random order.
    The windows alone, each with the next one, are what a pair shows of nothing."""
    rows = []
    for (version, qemu), accel in zip(qemus(), ACCELERATORS, strict=False):
        with Guest(qemu, accel) as guest:
            rows.append(_row(f"{version} {accel}: pflash writes/s beside a check", guest, pairs))
    return rows


def _row(name: str, guest: Guest, pairs: int) -> Row:
    generator = random.Random(2111)
    quiet: list[float] = []
    ours: list[float] = []
    took: list[float] = []
    command = [sys.executable, "-m", "qtrace", "check", "--pid", str(guest.pid)]

    def alone() -> None:
        time.sleep(WINDOW_S)

    def checked() -> None:
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.monotonic() - began)

    for _ in range(pairs):
        windows = [alone, checked]
        generator.shuffle(windows)
        rates = {window: _rate(guest, window) for window in windows}
        quiet.append(rates[alone])
        ours.append(rates[checked] / rates[alone])
    quiet.append(_rate(guest, alone))
    same = [one / other for one, other in pairwise(quiet)]
    low, high = interval(same, generator)
    return (
        name,
        f"{pairs} pairs; a check took {statistics.median(took):.1f} s, at most {max(took):.1f} s",
        f"{statistics.median(ours):.3f}",
        f"A/A {statistics.median(same):.3f} [{low:.3f}, {high:.3f}]",
        "inside the A/A interval, at most 12 s",
    )


def _rate(guest: Guest, window: Callable[[], None]) -> float:
    before, began = guest.flash_writes(), time.monotonic()
    window()
    return ((guest.flash_writes() - before) % 2**32) / (time.monotonic() - began)
