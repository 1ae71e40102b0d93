"""What counts tell: against figures that others have computed, and by brute force."""

from __future__ import annotations

from collections.abc import Iterable
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrace.analysis.rates import Count, Hits, Series, chance, corrected, needed, say
from qtrace.analysis.rates import bursts as bursts_of


def bursts(sides: Iterable[Iterable[Hits]]) -> float:
    """Of sides of recordings of hits."""
    return bursts_of([[Series.of_hits(one) for one in side] for side in sides])


# Fisher's tea tasting and others: two-sided p as R's fisher.test() prints it.
KNOWN = [
    ((3, 4), (1, 4), 0.4857142857),
    ((1, 10), (11, 14), 0.002759456),
    ((13, 3000), (0, 3000), 0.0002409807951),
    ((0, 0), (5, 10), 1.0),
]


@pytest.mark.parametrize(("before", "after", "p"), KNOWN)
def test_fishers_test_is_exact(before: tuple[int, int], after: tuple[int, int], p: float) -> None:
    assert chance(Count(*before), Count(*after)) == pytest.approx(p, rel=1e-5)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12))
def test_it_sums_all_tables_that_are_no_likelier(a: int, b: int, n: int, m: int) -> None:
    a, b = min(a, n), min(b, m)
    weights = [comb(n, x) * comb(m, a + b - x) for x in range(a + b + 1) if a + b - x >= 0]
    expected = sum(w for w in weights if w <= weights[a]) / comb(n + m, a + b)
    assert chance(Count(a, n), Count(b, m)) == pytest.approx(expected, rel=1e-6)


def test_millions_are_counted_as_well() -> None:
    assert chance(Count(5_000_000, 10_000_000), Count(5_000_000, 10_000_000)) == pytest.approx(1)
    assert chance(Count(5_010_000, 10_000_000), Count(4_990_000, 10_000_000)) < 1e-9


def test_the_interval_of_none_ends_above_nothing() -> None:
    low, high = Count(0, 3000).interval()
    assert low == 0
    assert 0.001 < high < 0.0013
    assert Count(0, 0).interval() == (0.0, 1.0)
    assert Count(7, 7).interval()[1] == 1.0


def test_thirteen_of_3000_against_none_is_sure_and_against_a_tenth_is_not() -> None:
    assert "surely rarer (by chance alone 1 in 4,100)" in say(Count(13, 3000), Count(0, 3000))
    few = say(Count(13, 3000), Count(0, 300))
    assert "too few to tell; 867 without one would" in few
    assert needed(Count(0, 3000)) is None


@pytest.mark.parametrize(
    "before", [Count(13, 3000), Count(2, 300), Count(1, 5), Count(5, 5), Count(172, 1000, 22.0)]
)
def test_as_many_as_are_said_to_be_enough_are_enough(before: Count) -> None:
    few = needed(before)
    assert few is not None
    assert "rarer" in say(before, Count(0, few, before.bursts))
    assert f"{few:,} without one would" in say(before, Count(0, few - 1, before.bursts))


def test_what_was_never_there_is_said_to_be_so() -> None:
    assert say(Count(0, 5), Count(0, 9)).endswith("never")
    assert say(Count(1, 5), Count(0, 0)).endswith("nothing to count after")
    assert "no difference is shown" in say(Count(5, 10), Count(6, 10))
    assert "surely more frequent" in say(Count(0, 3000), Count(40, 3000))


@pytest.mark.parametrize("share", [0.005, 0.1, 0.5, 0.9])
def test_independent_draws_come_in_no_bursts(share: float) -> None:
    draw = np.random.default_rng(1)
    sides = [[[draw.random(2000) < share, draw.random(700) < share]] for _ in range(50)]
    assert sorted(bursts(side) for side in sides)[46] == 1.0


def chain(draw: np.random.Generator, length: int, share: float, alike: float) -> Hits:
    """Hits of which neighbours correlate by ``alike``: each is mostly its neighbour once more."""
    fresh = draw.random(length) >= alike
    fresh[0] = True
    return (draw.random(length) < share)[np.maximum.accumulate(np.where(fresh, range(length), 0))]


@pytest.mark.parametrize(("share", "alike"), [(0.16, 0.3), (0.16, 0.75), (0.02, 0.75)])
def test_two_recordings_of_the_same_race_are_seldom_told_apart(share: float, alike: float) -> None:
    """By Fisher's test of the plain counts they are in one of ten to one of two."""
    draw, apart, plain, held = np.random.default_rng(2), 0, 0, 0
    for _ in range(200):
        pair = [chain(draw, 1000, share, alike) for _ in range(2)]
        each = bursts([one] for one in pair)
        counts = [Count(int(one.sum()), len(one), each) for one in pair]
        apart += chance(*counts) < 0.05
        plain += chance(*(Count(one.count, one.of) for one in counts)) < 0.05
        low, high = counts[0].interval()
        held += low <= share <= high
    assert apart <= 14 < plain
    assert held >= 170


def test_draws_that_are_each_seen_ten_times_count_as_a_tenth() -> None:
    found = np.repeat(np.random.default_rng(2).random(400) < 0.2, 10)
    assert 7 < bursts([[found]]) < 25
    count = Count(int(found.sum()), 4000, 10.0)
    assert count.independent.of == 400
    low, high = count.interval()
    plain = Count(count.count // 10, 400).interval()
    assert (low, high) == pytest.approx(plain, abs=0.01)
    assert chance(count, Count(0, 4000, 10.0)) == chance(count.independent, Count(0, 400))


def test_bursts_whose_hits_are_no_neighbours_are_bursts_as_well() -> None:
    """Every other one, for as long as two loops are in step."""
    found = np.zeros(3000, np.bool_)
    for begin in (200, 900, 1500, 2600):
        found[begin : begin + 60 : 2] = True
    assert bursts([[found]]) > 10


def test_recordings_of_a_side_that_differ_count_as_bursts() -> None:
    """Each boot has its own odds: two boots of 1,000 saves are no 2,000 draws."""
    draw = np.random.default_rng(3)
    few, many = draw.random(1000) < 0.1, draw.random(1000) < 0.4
    assert bursts([[few, many]]) > 50
    assert bursts([[few], [many]]) == 1.0
    assert bursts([[many, draw.random(1000) < 0.4]]) == 1.0


def test_too_short_or_uniform_series_show_no_bursts() -> None:
    assert bursts([]) == bursts([[]]) == 1.0
    assert bursts([[np.ones(500, np.bool_)], [np.zeros(500, np.bool_)]]) == 1.0
    assert bursts([[np.repeat([True, False], 10)]]) == 1.0
    # One block of hits is as good as one.
    assert Count(250, 500, bursts([[np.arange(500) < 250]])).independent.of < 30


@given(
    st.lists(st.booleans(), min_size=30, max_size=400).filter(lambda own: 0 < sum(own) < len(own))
)
def test_a_series_tells_what_its_hits_do(own: list[bool]) -> None:
    """Its sums, multiplied out, are those that the hits themselves have."""
    hits = np.array(own)
    one, apart = Series.of_hits(hits), hits - hits.mean()
    size = int(len(own) ** 0.5)
    counts = hits[: len(own) // size * size].reshape(-1, size).sum(axis=1)
    neighbours = one.both - one.share * (2 * one.hits - one.first - one.last)
    assert neighbours + (one.of - 1) * one.share**2 == pytest.approx(apart[1:] @ apart[:-1])
    assert (one.in_blocks, one.squares) == (counts.sum(), (counts**2).sum())


def test_one_of_many_groups_that_is_likely_by_itself_is_none_after_correction() -> None:
    assert corrected([0.04, 0.5, 0.9]) == pytest.approx([0.12, 1.0, 1.0])
    assert corrected([0.5, 0.001, 0.02]) == pytest.approx([0.5, 0.003, 0.04])
    assert corrected([]) == []


def test_a_sentence_names_its_own_sides_and_the_chance_it_is_given() -> None:
    text = say(Count(1, 1000), Count(30, 1000), ("elsewhere", "in b"), by_chance=0.03)
    assert "elsewhere" in text
    assert text.endswith(
        "30 of 1,000 (2.1 %-4.3 %) in b: likely more frequent (by chance alone 1 in 33)"
    )
