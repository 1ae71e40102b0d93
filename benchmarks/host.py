"""A whole host under one monitor: what it costs, what its guests lose, how soon a hang is told."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence

from benchmarks.monitored_host import (
    BUSY,
    GUESTS,
    TIMEOUT_S,
    BusyGuest,
    Monitor,
    SmallGuest,
    busy_guests,
    idle_guests,
)
from benchmarks.pairs import Row, interval

# Of each pace so long.
STEADY_S = float(os.environ.get("QTRACE_STEADY_S", "60"))
HANGS, AT_ONCE = 100, 5
SETTLED_S = 5.0
# Of the guests' rates.
WINDOW_S = 5.0


def run(pairs: int) -> list[Row]:
    with idle_guests() as idle, busy_guests() as busy:
        rows = []
        for every_s, most in ((5, 1), (1, 4)):
            cost, pss = _steady(every_s)
            what = f"{GUESTS} guests, {len(busy)} of them busy, a look each {every_s} s"
            goal = f"at most {most} % of a core"
            rows.append((f"{what}: processor", f"{100 * cost:.1f} %", "-", _load(), goal))
            goal = f"at most {150 + GUESTS} MiB"
            rows.append((f"{what}: Pss", f"{pss:.0f} MiB", "-", "-", goal))
        rows += _rates(busy, pairs)
        rows += _hangs(idle)
    return rows


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.0f}"


def _steady(every_s: int) -> tuple[float, float]:
    """Processor time a second, and Pss in MiB, of all of a monitor's processes."""
    monitor = Monitor("--every", f"{every_s}s")
    try:
        monitor.wait_for_looks()
        time.sleep(SETTLED_S)
        before, began = monitor.cpu_s(), time.monotonic()
        time.sleep(STEADY_S)
        cost = (monitor.cpu_s() - before) / (time.monotonic() - began)
        return cost, monitor.pss_mib()
    finally:
        monitor.close()


def _rates(busy: Sequence[BusyGuest], pairs: int) -> list[Row]:
    """What busy guests do a second beside a monitor, and twice without one, in random order."""
    generator = random.Random(2111)
    same: dict[str, list[float]] = {guest.name: [] for guest in busy}
    ours: dict[str, list[float]] = {guest.name: [] for guest in busy}
    for _ in range(pairs if busy else 0):
        windows = [False, False, True]
        generator.shuffle(windows)
        rates = [(watched, _window(busy, watched)) for watched in windows]
        one, other = (rate for watched, rate in rates if not watched)
        ((_watched, beside),) = [pair for pair in rates if pair[0]]
        for guest in busy:
            name = guest.name
            same[name].append(one[name] / other[name])
            ours[name].append(beside[name] / generator.choice((one, other))[name])
    rows = []
    for guest in busy:
        low, high = interval(same[guest.name], generator)
        rows.append((
            f"{guest.what} a second, beside a monitor that looks each second",
            f"{pairs} windows of {WINDOW_S:.0f} s",
            f"{statistics.median(ours[guest.name]):.3f}",
            f"A/A {statistics.median(same[guest.name]):.3f} [{low:.3f}, {high:.3f}], {_load()}",
            "inside the A/A interval",
        ))  # fmt: skip
    return rows


def _window(busy: Sequence[BusyGuest], watched: bool) -> dict[str, float]:
    """What each guest has done a second."""
    monitor = Monitor("--every", "1s") if watched else None
    try:
        if monitor is not None:
            monitor.wait_for_looks()
        before, began = {guest.name: guest.done() for guest in busy}, time.monotonic()
        time.sleep(WINDOW_S)
        took_s = time.monotonic() - began
        return {
            guest.name: ((guest.done() - before[guest.name]) % 2**32) / took_s for guest in busy
        }
    finally:
        if monitor is not None:
            monitor.close()


def _hangs(guests: Sequence[SmallGuest]) -> list[Row]:
    """How soon a hang is in the metrics, and alarms of guests that do not hang."""
    monitor = Monitor("--every", "1s")
    told: list[float] = []
    false = 0
    try:
        monitor.wait_for_looks()
        for first in range(0, HANGS, AT_ONCE):
            hung = [guests[number % len(guests)] for number in range(first, first + AT_ONCE)]
            since = {guest.name: guest.hang() for guest in hung}
            deadline = time.monotonic() + TIMEOUT_S
            while since and time.monotonic() < deadline:
                stuck = monitor.of_vms("qtrace_main_loop_stuck_seconds")
                now = time.monotonic()
                for name in [name for name in since if stuck[name] > 0]:
                    told.append(now - since.pop(name))
                false += sum(
                    seconds > 0 for name, seconds in stuck.items()
                    if name not in {guest.name for guest in hung}
                )  # fmt: skip
                time.sleep(0.1)
            for guest in hung:
                guest.go_on()
            while any(monitor.of_vms("qtrace_main_loop_stuck_seconds").values()):
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        monitor.close()
    late = sum(seconds > 4 for seconds in told)
    spread = f"median {statistics.median(told):.1f} s, most {max(told):.1f} s, {_load()}"
    return [
        (f"{HANGS} hangs, {BUSY} busy guests, a look each second: told",
         f"{len(told)}, {late} later than 4 s", "-", spread, "all, at most 4 s after it began"),
        ("alarms of guests that do not hang, meanwhile", str(false), "-", "-", "none"),
    ]  # fmt: skip
