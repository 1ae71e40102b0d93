"""The hits of the watched bottom halves' probes that left no row: counted by the kernel."""

from __future__ import annotations

import time
from collections.abc import Mapping

from qtrace.recorder.probes import Probes
from qtrace.target.watch import Site
from qtrace.trace.schema import Event

# How often the kernel's counters are read: the width of a loss's interval.
CHECK_NS = 100_000_000


class Losses:
    """Turns counters into rows, each with the interval in which it happened.

    Args:
        sites: by run-time address.
    """

    def __init__(self, probes: Probes, sites: Mapping[int, Site]) -> None:
        self._probes = probes
        self._sites = sites
        self._seen: dict[int, int] = {}
        self._checked_ns = time.monotonic_ns()

    @property
    def due(self) -> bool:
        return time.monotonic_ns() - self._checked_ns >= CHECK_NS

    @property
    def count(self) -> int:
        """So far, of those that a verdict rests on: a step of a QMP command is none."""
        return sum(n for address, n in self._seen.items() if not self._sites[address].is_step)

    def rows(self) -> list[Event]:
        """What was lost since the last call."""
        begin = time.monotonic_ns()
        counts = self._probes.lost()
        # Whatever they count was lost before now.
        now, rows = time.monotonic_ns(), []
        for address, count in counts.items():
            new = count - self._seen.get(address, 0)
            if new:
                site = self._sites[address]
                detail = {"count": new, "since_ns": self._checked_ns, "site": site.label}
                if site.is_step:
                    detail["probes"] = "steps"
                rows.append(Event(now, "lost", name=site.name, detail=detail))
                self._seen[address] = count
        self._checked_ns = self._probes.counted_ns(begin)
        return rows

    def anything(self) -> Event:
        """The row of a recorder that failed: it may have missed anything since the last call."""
        detail = {"count": 1, "since_ns": self._checked_ns}
        return Event(time.monotonic_ns(), "lost", detail=detail)
