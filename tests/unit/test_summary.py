"""Summaries say what ``judge`` says, and merge to the same bytes in any order."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import Trace, judge
from qtrace.analysis.distribution import Distribution, edges
from qtrace.analysis.rates import Series
from qtrace.analysis.summarise import summarise
from qtrace.analysis.summary import About, Counted, Environment, Found, Summary, Time, merged

SAMPLES = Path(__file__).parents[2] / "analysis/samples"
FILES = sorted(path for path in SAMPLES.iterdir() if path.suffix in (".csv", ".parquet"))

counts = st.integers(0, 1 << 40)
words = st.sampled_from(["", "main", "a", "b\u00e9"])
some_times = st.lists(st.integers(0, 1 << 62), max_size=30).map(
    lambda values: Distribution.of(np.array(values, np.int64))
)


def series(of: int) -> st.SearchStrategy[Series]:
    hits = st.lists(st.booleans(), min_size=of, max_size=of)
    return hits.map(lambda own: Series.of_hits(np.array(own, np.bool_)))


counted = st.integers(1, 12).flatmap(
    lambda of: st.dictionaries(st.sampled_from(["pending", "vcpu-poll"]), series(of)).map(
        lambda verdicts: Counted(of, tuple(sorted(verdicts.items())))
    )
)
found = st.builds(
    Found, counts, counts, st.sampled_from(["error", "warning"]), st.floats(0, 1e18), words, words,
    st.lists(st.integers(2, 9), max_size=3).map(tuple),
)  # fmt: skip
summaries = st.builds(
    Summary, counts, counts, counts, counts, counts,
    st.dictionaries(st.sampled_from(["pending", "vcpu-poll"]), st.integers(1, 99)),
    st.dictionaries(st.builds(Environment, words, words), st.integers(1, 99), max_size=3),
    st.dictionaries(words, st.lists(counted, max_size=3).map(lambda own: tuple(sorted(own)))),
    st.dictionaries(words, st.dictionaries(st.sampled_from(["none"]), st.integers(1, 9))),
    st.dictionaries(st.builds(About, words, words, words, words), found, max_size=3),
    st.dictionaries(st.builds(Time, words, words, words), some_times, max_size=3),
)  # fmt: skip


@settings(max_examples=40)
@given(summaries, summaries, summaries)
def test_they_merge_to_the_same_bytes_however_they_are_grouped(
    one: Summary, two: Summary, three: Summary
) -> None:
    whole = (one + two) + three
    assert one + (two + three) == whole
    assert (three + one + two).as_json() == whole.as_json() == merged([two, three, one]).as_json()
    assert one + Summary() == Summary() + one == one


@given(summaries)
def test_one_is_read_back_as_it_was_written(one: Summary) -> None:
    assert Summary.from_json(one.as_json()) == one


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_recording_keeps_its_verdicts_and_answers_in_kilobytes(path: Path) -> None:
    trace = Trace(path)
    report, summary = judge([trace.file], lints=None), summarise(trace)
    assert summary.verdicts == {report["verdict"]: 1}
    for half in report["bottom_halves"]:
        own = {
            verdict: sum(one.hits for one in summary.series(half["name"], verdict))
            for verdict in half["verdicts"]
        }
        assert own == half["verdicts"]
        assert summary.instances(half["name"]) == sum(own.values())
    assert {name: dict(answers) for name, answers in summary.lints.items()} == {
        lint["lint"]: {lint["result"]: 1} for lint in report["lints"]
    }
    told = {about.what for about in summary.findings}
    assert told >= {lint["lint"] for lint in report["lints"] if lint["findings"]}
    assert all(one.trace == str(path) for one in summary.findings.values())
    assert len(summary.as_json()) < 64_000


def test_the_samples_in_any_order_are_one_summary() -> None:
    small = [path for path in FILES if path.stat().st_size < 10_000]
    parts = [summarise(path) for path in small]
    whole = merged(parts).as_json()
    for seed in range(5):
        random.Random(seed).shuffle(parts)
        assert merged(parts).as_json() == whole
    assert summarise(small).as_json() == whole


@given(st.lists(st.integers(0, 1 << 62), min_size=1, max_size=300), st.floats(0, 1))
def test_a_percentile_is_right_to_one_percent(values: list[int], share: float) -> None:
    found = Distribution.of(np.array(values, np.int64))
    true = sorted(values)[int(share * (len(values) - 1))]
    assert abs(found.percentile(share) - true) <= true / 100 + 1
    assert (found.count, found.largest_ns) == (len(values), max(values))


@given(*[st.lists(st.integers(-5, 1 << 40), max_size=50)] * 2)
def test_distributions_merge_to_that_of_all_times(one: list[int], other: list[int]) -> None:
    parts = [Distribution.of(np.array(values, np.int64)) for values in (one, other)]
    assert parts[0] + parts[1] == Distribution.of(np.array(one + other, np.int64))
    assert parts[0] + parts[1] == parts[1] + parts[0]


def test_every_time_has_a_bucket_and_none_is_wider_than_told() -> None:
    own = edges().astype(object)
    assert own[0] == 0
    assert own[-1] == np.iinfo(np.int64).max
    assert all(low < high and 99 * high <= 101 * low + 99 for low, high in itertools.pairwise(own))
