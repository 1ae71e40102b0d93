"""Guests that are sound, idle and busy, under a monitor: none is to be told as anything else.

QTRACE_STEADY_S=3600 QTRACE_GUESTS=40 python -m benchmarks alarms
"""

from __future__ import annotations

import os
import re
import sys
import time

from benchmarks.monitored_host import GUESTS, Monitor, busy_guests, idle_guests
from benchmarks.pairs import Row

STEADY_S = float(os.environ.get("QTRACE_STEADY_S", "60"))
PROGRESS_S = 60.0


def run(_pairs: int) -> list[Row]:
    """Each second what is told now; at the end all that has come up, and what every guest did."""
    with idle_guests(), busy_guests() as busy:
        monitor = Monitor("--every", "1s")
        stuck, unclear = 0, 0
        loads: list[float] = []
        try:
            monitor.wait_for_looks()
            before = {guest.name: guest.done() for guest in busy}
            used_s, began = monitor.cpu_s(), time.monotonic()
            while time.monotonic() - began < STEADY_S:
                stuck += sum(
                    v != 0 for v in monitor.of_vms("qtrace_main_loop_stuck_seconds").values()
                )
                unclear += sum(monitor.of_vms("qtrace_vm_inconclusive").values()) > 0
                if len(loads) * PROGRESS_S <= time.monotonic() - began:
                    loads.append(os.getloadavg()[0])
                    print(f"{time.monotonic() - began:.0f} s: {stuck}", file=sys.stderr)
                time.sleep(1)
            took_s = time.monotonic() - began
            cost = (monitor.cpu_s() - used_s) / took_s
            text = monitor.scrape()
            found = re.findall(r"^qtrace_found_total{.*} (?!0\.0$).*$", text, re.MULTILINE)
            looks = sum(monitor.of_vms("qtrace_looks_total").values())
            done = [
                f"{guest.what} {(guest.done() - before[guest.name]) % 2**32:,}" for guest in busy
            ]
        finally:
            said = monitor.close()
    for line in (*found, *said.splitlines()):
        print(line, file=sys.stderr)
    loads.sort()
    return [
        (f"{GUESTS} guests, {len(busy)} of them busy, none hung, for {took_s:.0f} s: findings",
         str(len(found)), "-",
         f"{looks:,.0f} looks; {'; '.join(done)}; load average {loads[0]:.0f} to {loads[-1]:.0f}",
         "none"),
        ("the same: seconds in which a main loop was told as stuck, or as not known",
         str(stuck), "-", f"a look could not tell in {unclear} of {took_s:.0f} s", "none"),
        ("the same: processor, a look each second", f"{100 * cost:.1f} %", "-", "-",
         "at most 4 % of a core"),
    ]  # fmt: skip
