"""Times as the kernel sums them: the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The first bucket has what took at most so long, each next one twice that; the last has the rest.
# As probes/stats.bpf.c.
SHORTEST_NS, BOUNDS = 1 << 10, 24
BOUNDS_NS = tuple(SHORTEST_NS << number for number in range(BOUNDS))


@dataclass(frozen=True)
class Histogram:
    """How many took at most each of ``BOUNDS_NS``, but longer than the one before, and how many
    longer than all; and how long all took together."""

    buckets: tuple[int, ...]
    total_ns: int

    @classmethod
    def of(cls, counts: Sequence[int], total_ns: int) -> Histogram:
        """``counts``: of the kernel's buckets, which go on beyond the last bound."""
        return cls((*counts[:BOUNDS], sum(counts[BOUNDS:])), total_ns)

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def __add__(self, other: Histogram) -> Histogram:
        added = zip(self.buckets, other.buckets, strict=True)
        return Histogram(tuple(one + two for one, two in added), self.total_ns + other.total_ns)
