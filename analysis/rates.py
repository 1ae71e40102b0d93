"""How sure one can be that something rare has become rarer, or more frequent.

What is counted is how many bottom halves of a recording had a verdict. Exact where that matters:
thirteen in three thousand are few. A race strikes in bursts, while two loops are in step: then many
bottom halves tell no more than a few independent ones would, and are counted as so many. By how
much fewer is Kish's design effect, here ``bursts``; what it cannot know stands in docs/diff.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

# Of the interval.
CONFIDENCE = 0.95
# From here on a difference is called one.
SURE, LIKELY = 0.001, 0.05
# Smaller chances are not told apart: no model of the draws is that good.
NEGLIGIBLE = 1e-6
# Fewer than these in a row do not show whether they come in bursts.
SERIES = 30
# So many standard deviations are no chance.
SIGMAS = 3
# Nobody will make more than these to show that something is gone.
ENDLESS = 1 << 40
# So far from its mean, in standard deviations, nothing of the distribution is left in a float.
FAR = 40


Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Count:
    """``count`` of ``of`` had it; ``bursts`` of them tell as much as one that is independent."""

    count: int
    of: int
    bursts: float = 1.0

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    @property
    def independent(self) -> Count:
        """As many independent ones as tell the same."""
        of = max(round(self.of / self.bursts), min(self.of, 1))
        count = max(round(self.share * of), min(self.count, 1))
        return Count(count if self.count < self.of else of, of)

    def interval(self) -> tuple[float, float]:
        """Where the true share lies with 95 % (Wilson 1927; right for none of many, too)."""
        if not self.of:
            return 0.0, 1.0
        z, of = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), self.of / self.bursts
        middle = self.share + z * z / (2 * of)
        half = z * math.sqrt(self.share * (1 - self.share) / of + (z / (2 * of)) ** 2)
        scale = 1 + z * z / of
        low, high = (middle - half) / scale, (middle + half) / scale
        return (0.0 if not self.count else low), (1.0 if self.count == self.of else high)


class Series(NamedTuple):
    """What the hits of one recording, in their order, tell of bursts: all that ``bursts`` needs.

    Attributes:
        of, hits: how many there were, and how many of them were hits.
        both: how many neighbours were both hits.
        first, last: whether the first and the last were, 0 or 1.
        in_blocks, squares: of the blocks (as long as the root of ``of``), the sum of their hits and
            of the squares of these.
    """

    of: int
    hits: int = 0
    both: int = 0
    first: int = 0
    last: int = 0
    in_blocks: int = 0
    squares: int = 0

    @classmethod
    def of_hits(cls, series: Hits) -> Series:
        """Of which had it."""
        of = len(series)
        if not of:
            return cls(0)
        size = math.isqrt(of)
        blocks = series[: of // size * size].reshape(-1, size).sum(axis=1, dtype=np.int64)
        return cls(
            of,
            int(series.sum()),
            int((series[1:] & series[:-1]).sum()),
            int(series[0]),
            int(series[-1]),
            int(blocks.sum()),
            int((blocks * blocks).sum()),
        )

    @property
    def share(self) -> float:
        return self.hits / self.of


def hits(instances: pd.DataFrame, name: str, verdict: str) -> Series:
    """Which of the instances of a bottom half had a verdict, in their order."""
    own = instances["verdict"][(instances["name"] == name).to_numpy()]
    return Series.of_hits(np.asarray(own == verdict))


def bursts(sides: Iterable[Sequence[Series]]) -> float:
    """How many of them tell as much as one that is independent of all others, 1 or more.

    The variance of a count beside that of independent draws (the design effect), by whichever of
    three shows most; each counts only where it is beyond chance: what the correlation of neighbours
    makes of a chain of two states, the counts of blocks (batch means), and of whole recordings.

    Args:
        sides: what should be alike stands together: of each side its recordings, of each recording
            which of its bottom halves had the verdict, in their order.
    """
    given = [[series for series in side if series.of] for side in sides]
    found = _within([series for side in given for series in side])
    between, freedom = 0.0, 0
    for side in given:
        of = sum(series.of for series in side)
        share = sum(series.hits for series in side) / of if of else 0.0
        if len(side) > 1 and 0 < share < 1:
            between += math.fsum(
                (one.hits - one.of * share) ** 2 / (one.of * share * (1 - share)) for one in side
            )
            freedom += len(side) - 1
    if _beyond_chance(between / found, freedom):
        found = max(found, between / freedom)
    return found


def _within(recordings: list[Series]) -> float:
    """The design effect inside recordings."""
    usable = [one for one in recordings if one.of >= SERIES and 0 < one.hits < one.of]
    if not usable:
        return 1.0
    length = sum(one.of for one in usable)
    variance = math.fsum(one.hits * (1 - one.share) for one in usable)
    # The products of neighbours' distances from the mean, multiplied out.
    alike = (
        math.fsum(
            one.both
            - one.share * (2 * one.hits - one.first - one.last)
            + (one.of - 1) * one.share**2
            for one in usable
        )
        / variance
    )
    found = 1.0
    if alike * math.sqrt(length) >= SIGMAS:
        alike = min(alike, 1 - 1 / length)
        found = (1 + alike) / (1 - alike)
    freedom = sum(one.of // math.isqrt(one.of) - 1 for one in usable)
    blocks = math.fsum(map(_squares, usable))
    if _beyond_chance(blocks, freedom):
        found = max(found, blocks / freedom)
    return found


def _squares(one: Series) -> float:
    """Pearson's sum of squares over the blocks, each expected to have the recording's share."""
    size = math.isqrt(one.of)
    expected = size * one.share
    apart = one.squares - 2 * expected * one.in_blocks + (one.of // size) * expected**2
    return apart / (expected * (1 - one.share))


def _beyond_chance(squares: float, freedom: int) -> bool:
    """Whether a chi-square of so many degrees of freedom is too large (Wilson and Hilferty)."""
    if not freedom:
        return False
    usual = 2 / (9 * freedom)
    return math.cbrt(squares / freedom) - (1 - usual) >= SIGMAS * math.sqrt(usual)


def chance(before: Count, after: Count) -> float:
    """How often counts at least as far apart come though nothing has changed, 0 to 1.

    Fisher's exact test, two-sided: all tables with these sums that are no likelier than this one.
    """
    before, after = before.independent, after.independent
    found, draws, others = before.count + after.count, before.of, after.of
    total = draws + others
    if not draws or not others:
        return 1.0
    low, high = max(0, found - others), min(found, draws)
    mean = draws * found / total
    reach = FAR * math.sqrt(mean * (1 - found / total) * others / max(total - 1, 1)) + FAR
    first, last = max(low, math.floor(mean - reach)), min(high, math.ceil(mean + reach))
    if not first <= before.count <= last:
        return 0.0
    x = np.arange(first, last, dtype=np.float64)
    steps = np.log((draws - x) * (found - x)) - np.log((x + 1) * (others - found + x + 1))
    begin = _log_choose(draws, first) + _log_choose(others, found - first)
    logs = begin - _log_choose(total, found) + np.concatenate([[0.0], np.cumsum(steps)])
    as_rare = logs <= logs[before.count - first] + 1e-7
    return min(1.0, float(np.exp(logs[as_rare]).sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def needed(before: Count) -> int | None:
    """How many without one would show that it is rarer than before; None for never."""
    if not before.count:
        return None

    def shows(of: int) -> bool:
        return chance(before, Count(0, of, before.bursts)) < LIKELY

    enough = 1
    while not shows(enough):
        enough *= 2
        if enough > ENDLESS:
            return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if shows(middle) else (middle, enough)
    return enough


def corrected(chances: Sequence[float]) -> list[float]:
    """The chances of several tests, each as if it were the only one (Holm 1979): with twenty groups
    one differs "likely" by chance. In their order."""
    found, latest, left = [0.0] * len(chances), 0.0, len(chances)
    for number in sorted(range(len(chances)), key=lambda number: chances[number]):
        latest = found[number] = min(1.0, max(latest, chances[number] * left))
        left -= 1
    return found


def say(
    before: Count,
    after: Count,
    sides: tuple[str, str] = ("before", "after"),
    by_chance: float | None = None,
) -> str:
    """What the two counts tell, in a sentence.

    Args:
        sides: what they are called.
        by_chance: the chance, where it is no test of its own (``corrected``).
    """
    counts = f"{say_count(before)} {sides[0]}, {say_count(after)} {sides[1]}"
    if max(before.bursts, after.bursts) > 1:
        alone = f"{before.independent.of:,} and {after.independent.of:,}"
        counts += f", in bursts: worth {alone} independent ones"
    if not before.of or not after.of:
        where = sides[0] if not before.of else sides[1]
        return f"{counts}: there was nothing to count {where}"
    if before.count == after.count == 0:
        return f"{counts}: never"
    p = chance(before, after) if by_chance is None else by_chance
    if p >= LIKELY:
        more = needed(before) if not after.count and by_chance is None else None
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
    if p < NEGLIGIBLE:
        return "less than 1 in a million"
    times = 1 / p
    digits = max(0, math.floor(math.log10(times)) - 1)
    return f"1 in {round(times / 10**digits) * 10**digits:,}" if times >= 2 else f"{p:.0%}"
