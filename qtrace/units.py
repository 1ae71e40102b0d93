"""Values with their unit, for people: the same in every output. The standard library only."""

from __future__ import annotations

# How many nanoseconds a written time has.
TIMES = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


def show(value: float, unit: str) -> str:
    """A value in three digits: ``1.25 s``, ``100/s``, ``7``; times are given in ``ns``."""
    if unit != "ns":
        return f"{value:,.0f}{unit}" if value >= 10 else f"{value:.3g}{unit}"
    for name in ("s", "ms", "us"):
        if value >= TIMES[name]:
            return f"{value / TIMES[name]:.3g} {name}"
    return f"{value:.0f} ns"
