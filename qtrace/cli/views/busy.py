"""The busiest bottom halves as rows of a screen."""

from __future__ import annotations

from typing import Protocol

from qtrace.units import show

BUSIEST = ("runs", "wait p50", "p99", "took p50", "p99")


class Busy(Protocol):
    """Of one bottom half the part of all runs, and p50 and p99 in nanoseconds, None where they are
    not known."""

    @property
    def share(self) -> float: ...
    @property
    def wait(self) -> tuple[float, float] | None: ...
    @property
    def took(self) -> tuple[float, float] | None: ...


def busy_row(name: str, busy: Busy) -> tuple[str, ...]:
    """A row below ``BUSIEST``."""
    times = [*(busy.wait or (None, None)), *(busy.took or (None, None))]
    cells = ["" if value is None else show(value, "ns") for value in times]
    return (name, f"{100 * busy.share:.1f} %", *cells)
