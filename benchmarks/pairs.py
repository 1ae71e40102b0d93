"""Interleaved pairs and their statistics."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from qtrace.lab.guest import find_qemu

# What was measured, how, the ratio, what stands beside it, the goal.
Row = tuple[str, str, str, str, str]

BACKPORTS = Path(__file__).parents[1] / ".cache/qemu-backports/usr/bin/qemu-system-x86_64"


def qemus() -> list[tuple[str, Path]]:
    """The QEMUs to measure on, by version."""
    from qtrace.binary.elf import Elf
    from qtrace.process.process import read_version

    paths = [find_qemu(), *([BACKPORTS] if BACKPORTS.exists() else [])]
    return [(read_version(Elf(path)).partition(" ")[0], path) for path in paths]


def ratios(
    pairs: int, one: Callable[[], float], other: Callable[[], float], generator: random.Random
) -> list[float]:
    """``one`` divided by ``other``, each pair back to back and in random order."""
    found = []
    for _ in range(pairs):
        if generator.random() < 0.5:
            first = one()
            found.append(first / other())
        else:
            second = other()
            found.append(one() / second)
    return found


def interval(values: Sequence[float], generator: random.Random) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    medians = sorted(
        statistics.median(generator.choices(values, k=len(values))) for _ in range(2000)
    )
    return medians[49], medians[1949]
