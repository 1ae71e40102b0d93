"""The hits of the watched bottom halves' probes that left no row: counted by the kernel."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from qtrace.inspection.qemu import Qemu
from qtrace.record.probes import Probes
from qtrace.sites.all_plan import AllSite
from qtrace.sites.running_code import without_probe
from qtrace.sites.watch_plan import Site
from qtrace.trace.schema import Event

# How often the kernel's counters are read: the width of a loss's interval.
CHECK_NS = 100_000_000


class Losses:
    """Turns counters into rows, each with the interval in which it happened.

    Args:
        sites: by run-time address.

    Attributes:
        problems: what is to be told of it, in words.
    """

    def __init__(self, probes: Probes, sites: Mapping[int, Site]) -> None:
        self._probes = probes
        self._sites = sites
        self._seen: dict[int, int] = {}
        self._checked_ns = time.monotonic_ns()
        self._taken_out = 0
        self.problems: list[str] = []

    def begin(self, since_ns: int) -> None:
        """The recording begins: nothing that it misses is older."""
        self._checked_ns = since_ns

    @property
    def due(self) -> bool:
        return time.monotonic_ns() - self._checked_ns >= CHECK_NS

    @property
    def count(self) -> int:
        """So far, of those that a verdict rests on: a step of a QMP command is none."""
        counted = sum(n for address, n in self._seen.items() if not self._sites[address].is_step)
        return counted + self._taken_out

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
                    detail["probes"] = "steps" if site.kind == "return" else "qmp"
                rows.append(Event(now, "lost", name=site.name, detail=detail))
                self._seen[address] = count
        self._checked_ns = self._probes.counted_ns(begin)
        return rows

    def taken_out(self, qemu: Qemu, since_ns: int, every: Sequence[AllSite] = ()) -> list[Event]:
        """A row for each probe that is not in the code any more, while all should be.

        A debugger that had its breakpoint at the same place has taken both out at its end.

        Args:
            since_ns: when they were set; they may be missing since then.
            every: those of `--all`, as long as they are set.
        """
        bias = qemu.binary.bias
        sites = {a - bias: site for a, site in self._sites.items() if not site.is_step}
        of_all = {site.vaddr: f"--all {site.kind}" for site in every}
        now, rows = time.monotonic_ns(), []
        for vaddr in without_probe(qemu.binary, qemu.memory, [*sites, *of_all]):
            own = sites.get(vaddr)
            label = own.label if own else of_all[vaddr]
            self.problems.append(
                f"somebody has taken out the probe '{label}': what it has missed is not known"
            )
            detail = {"count": 1, "since_ns": since_ns, "site": label}
            if vaddr in of_all:
                detail["probes"] = "all"
            rows.append(Event(now, "lost", name=own.name if own else "", detail=detail))
        self._taken_out += len(rows)
        return rows

    def anything(self) -> Event:
        """The row of a recorder that failed: it may have missed anything since the last call."""
        detail = {"count": 1, "since_ns": self._checked_ns}
        return Event(time.monotonic_ns(), "lost", detail=detail)
