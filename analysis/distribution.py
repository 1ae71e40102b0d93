"""How long things took, of any number of recordings, in a few kilobytes, and merged to the bit.

DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch", VLDB 2019) over
nanoseconds: a count for each bucket, of which each is 1 % to either side of its middle. Counts and
edges are integers here, so that the order in which recordings are merged, or the processor that did
it, changes nothing: sums of floats, and t-digests, depend on it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from qtrace.analysis.arrays import Numbers

# How far a percentile may be from the true one: 1 in so many.
ACCURACY = 100
# Percentiles of as many are exact; of more they are right to 1 %, however the recording is read.
EXACT = 1_000_000


class Percentiles(TypedDict):
    """Where times lie: the middle, the tail, the worst; nanoseconds."""

    p50_ns: int
    p99_ns: int
    max_ns: int


@cache
def edges() -> Numbers:
    """The upper edge of each bucket: each one (1 + 1 %) / (1 - 1 %) times the one before, at least
    by a nanosecond, up to the largest int64."""
    ratio = Fraction(ACCURACY + 1, ACCURACY - 1)
    limit = int(np.iinfo(np.int64).max)
    found = [0]
    while found[-1] < limit:
        found.append(min(max(math.floor(found[-1] * ratio), found[-1] + 1), limit))
    return np.array(found, np.int64)


@dataclass(frozen=True)
class Distribution:
    """Times: how many in each bucket, and the extremes.

    Attributes:
        counts: by the number of the bucket in ``edges()``; only of those that hold something.
        smallest_ns, largest_ns: exact; 0 when there is none.
    """

    counts: Mapping[int, int] = field(default_factory=dict)
    smallest_ns: int = 0
    largest_ns: int = 0

    @classmethod
    def of(cls, times: npt.NDArray[np.int64]) -> Distribution:
        """Of times in nanoseconds; what is below 0 counts as 0."""
        if not len(times):
            return cls()
        times = np.maximum(times, 0)
        buckets, counts = np.unique(edges().searchsorted(times), return_counts=True)
        found = dict(zip(buckets.tolist(), counts.tolist(), strict=True))
        return cls(found, int(times.min()), int(times.max()))

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.counts.values())

    def __add__(self, other: Distribution) -> Distribution:
        """Of the times of both: associative and commutative, to the bit."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        together = Counter(self.counts)
        together.update(other.counts)
        return Distribution(
            dict(sorted(together.items())),
            min(self.smallest_ns, other.smallest_ns),
            max(self.largest_ns, other.largest_ns),
        )

    def percentile(self, share: float) -> int:
        """The time below which this share of them lies (0 to 1), right to 1 % (``ACCURACY``).

        Raises:
            ValueError: there is none.
        """
        if not self.counts:
            raise ValueError("no times")
        buckets = sorted(self.counts)
        reached = np.cumsum([self.counts[bucket] for bucket in buckets])
        rank = math.floor(share * (self.count - 1))
        bucket = buckets[int(reached.searchsorted(rank, side="right"))]
        high = int(edges()[bucket])
        low = int(edges()[bucket - 1]) + 1 if bucket else high
        middle = 2 * low * high // max(low + high, 1)
        return min(max(middle, self.smallest_ns), self.largest_ns)


class Times:
    """Times that come part by part: as they are while there are few, then a distribution."""

    def __init__(self, exact: int = EXACT) -> None:
        """``exact``: so many are few."""
        self._few: list[npt.NDArray[np.int64]] = []
        self._many = Distribution()
        self._exact = exact
        self.count = 0

    def add(self, times: npt.NDArray[np.int64]) -> None:
        """Some more, in nanoseconds."""
        self.count += len(times)
        if not self._many.counts and self.count <= self._exact:
            self._few.append(times)
            return
        for some in (*self._few, times):
            self._many += Distribution.of(some)
        self._few = []

    def __add__(self, other: Times) -> Times:
        """The times of both: which was which makes no difference."""
        found = Times(self._exact)
        found._many = self._many + other._many
        found.count = found._many.count
        few = [*self._few, *other._few]
        found.add(np.concatenate(few) if few else np.empty(0, np.int64))
        return found

    def percentiles(self) -> Percentiles | None:
        """Of all of them; None for none."""
        if not self.count:
            return None
        if self._many.counts:
            p50, p99 = (self._many.percentile(share) for share in (0.5, 0.99))
            return {"p50_ns": p50, "p99_ns": p99, "max_ns": self._many.largest_ns}
        return percentiles(np.concatenate(self._few))

    def quantiles(self, points: int) -> list[int]:
        """Times that are there, as many, at equal steps from the shortest to the longest; none for
        none."""
        shares = np.linspace(0, 1, points)
        if self._many.counts:
            return [self._many.percentile(share) for share in shares.tolist()]
        if not self.count:
            return []
        found = np.quantile(np.concatenate(self._few), shares, method="higher")
        return [int(ns) for ns in found]


def percentiles(values: npt.NDArray[Any]) -> Percentiles | None:
    """Of nanoseconds, NaN left out; None for none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    p50, p99 = np.percentile(known, (50, 99))
    return {"p50_ns": int(p50), "p99_ns": int(p99), "max_ns": int(known.max())}
