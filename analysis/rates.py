"""How sure one can be that something rare has become rarer, or more frequent.

The bottom halves of a recording are taken as independent draws: what is counted is how many of
them had a verdict. Exact where that matters: thirteen in three thousand are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# Of the interval, and for "how many more would tell".
CONFIDENCE = 0.95
# From here on a difference is called one.
SURE, LIKELY = 0.001, 0.05
# So far from its mean, in standard deviations, nothing of the distribution is left in a float.
FAR = 40


@dataclass(frozen=True)
class Count:
    """``count`` of ``of`` had it."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def interval(self) -> tuple[float, float]:
        """Where the true share lies with 95 % (Wilson 1927; right for none of many, too)."""
        if not self.of:
            return 0.0, 1.0
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        middle = self.share + z * z / (2 * self.of)
        half = z * math.sqrt(self.share * (1 - self.share) / self.of + (z / (2 * self.of)) ** 2)
        scale = 1 + z * z / self.of
        low, high = (middle - half) / scale, (middle + half) / scale
        return (0.0 if not self.count else low), (1.0 if self.count == self.of else high)


def chance(before: Count, after: Count) -> float:
    """How often counts at least as far apart come though nothing has changed, 0 to 1.

    Fisher's exact test, two-sided: all tables with these sums that are no likelier than this one.
    """
    hits, draws, others = before.count + after.count, before.of, after.of
    total = draws + others
    if not draws or not others:
        return 1.0
    low, high = max(0, hits - others), min(hits, draws)
    mean = draws * hits / total
    spread = FAR * math.sqrt(mean * (1 - hits / total) * others / max(total - 1, 1)) + FAR
    first, last = max(low, math.floor(mean - spread)), min(high, math.ceil(mean + spread))
    if not first <= before.count <= last:
        return 0.0
    x = np.arange(first, last, dtype=np.float64)
    steps = np.log((draws - x) * (hits - x)) - np.log((x + 1) * (others - hits + x + 1))
    begin = _log_choose(draws, first) + _log_choose(others, hits - first)
    logs = begin - _log_choose(total, hits) + np.concatenate([[0.0], np.cumsum(steps)])
    as_rare = logs <= logs[before.count - first] + 1e-7
    return min(1.0, float(np.exp(logs[as_rare]).sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def needed(before: Count) -> int | None:
    """How many without one would show, with 95 %, that it is rarer than before; None for never."""
    if not 0 < before.share < 1:
        return None
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-before.share))


def say(before: Count, after: Count) -> str:
    """What the two counts tell, in a sentence."""
    counts = f"{say_count(before)} before, {say_count(after)} after"
    if not before.of or not after.of:
        when = "before" if not before.of else "after"
        return f"{counts}: there was nothing to count {when}"
    if before.count == after.count == 0:
        return f"{counts}: never"
    p = chance(before, after)
    if p >= LIKELY:
        more = needed(before) if not after.count else None
        if more is not None and more > after.of:
            return f"{counts}: too few to tell; {more:,} without one would"
        return f"{counts}: no difference is shown (chance alone: {_odds(p)})"
    way = "rarer" if after.share < before.share else "more frequent"
    sure = "surely" if p < SURE else "likely"
    return f"{counts}: {sure} {way} (by chance alone {_odds(p)})"


def say_count(count: Count) -> str:
    """``13 of 3,000 (0.25 %-0.74 %)``."""
    low, high = count.interval()
    if not count.of:
        return "0 of 0"
    bound = f"at most {_percent(high)}" if not count.count else f"{_percent(low)}-{_percent(high)}"
    return f"{count.count:,} of {count.of:,} ({bound})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.3g} %"


def _odds(p: float) -> str:
    """1 in how many, rounded to two digits."""
    if p < 1e-9:
        return "less than 1 in a thousand million"
    times = 1 / p
    digits = max(0, math.floor(math.log10(times)) - 1)
    return f"1 in {round(times / 10**digits) * 10**digits:,}" if times >= 2 else f"{p:.0%}"
