"""What counts tell: against figures that others have computed, and by brute force."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrace.analysis.rates import Count, chance, needed, say

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
    assert "too few to tell; 690 without one would" in few
    assert needed(Count(13, 3000)) == 690
    assert needed(Count(0, 3000)) is None


def test_what_was_never_there_is_said_to_be_so() -> None:
    assert say(Count(0, 5), Count(0, 9)).endswith("never")
    assert say(Count(1, 5), Count(0, 0)).endswith("nothing to count after")
    assert "no difference is shown" in say(Count(5, 10), Count(6, 10))
    assert "surely more frequent" in say(Count(0, 3000), Count(40, 3000))
