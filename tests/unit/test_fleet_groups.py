"""Which group differs, and how sure: of recordings whose odds are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qtrace.analysis.fleet import By, Row, groups, worst_first
from qtrace.analysis.rates import Series
from qtrace.analysis.summary import About, Counted, Environment, Found, Summary
from qtrace.errors import OutputExists
from qtrace.export.fleet_page import write_fleet_page

NAME = "snapshot_save_job_bh"


def row(url: str, hits: np.ndarray, build: str = "a", **facts: object) -> Row:
    """A recording in which these saves ran on a vCPU thread."""
    struck = bool(hits.any())
    about = About("vcpu-poll", NAME, "main", "vcpu")
    summary = Summary(
        recordings=1,
        verdicts={"vcpu-poll" if struck else "main-loop": 1},
        environments={Environment("qemu", "7.2", build): 1},
        bottom_halves={NAME: (Counted(len(hits), (("vcpu-poll", Series.of_hits(hits)),)),)},
        findings={about: Found(int(hits.sum()), 1, "error", 0, "it", url, (2,))} if struck else {},
    )
    verdict = "vcpu-poll" if struck else "main-loop"
    return Row(url, 1, "", url, verdict, summary=summary, **facts)  # type: ignore[arg-type]


def draws(seed: int, share: float, count: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_the_build_that_has_it_is_first_and_surely_differs() -> None:
    rows = [row(f"a{n}", draws(n, 0.0)) for n in range(5)]
    rows += [row(f"b{n}", draws(10 + n, 0.1), "b") for n in range(5)]
    first, second = groups(rows, By.parse("build"))
    assert (first.name, second.name) == ("b", "a")
    (difference,) = first.differences
    assert (difference.differs, difference.more) == (True, True)
    assert "surely more frequent" in difference.sentence
    assert "surely rarer" in second.differences[0].sentence


def test_of_many_groups_that_are_alike_none_is_said_to_differ() -> None:
    """By itself one of twenty would be."""
    told, alone = 0, 0
    for seed in range(10):
        rows = [row(f"{n}", draws(100 * seed + n, 0.05), str(n // 2)) for n in range(40)]
        found = [one for group in groups(rows, By.parse("build")) for one in group.differences]
        told += any(one.differs for one in found)
        alone += sum(one.chance < 0.05 for one in found)
    assert told <= 1
    assert alone >= 3


def test_boots_with_odds_of_their_own_are_no_difference_of_builds() -> None:
    """Each recording has another share: two builds of five of these tell nothing."""
    shares = [0.02, 0.3, 0.5, 0.1, 0.01, 0.4, 0.35, 0.05, 0.2, 0.6]
    rows = [row(f"{n}", draws(n, share), "ab"[n % 2]) for n, share in enumerate(shares)]
    for group in groups(rows, By.parse("build")):
        (difference,) = group.differences
        assert difference.bursts > 20
        assert not difference.differs


def test_recordings_that_could_not_be_read_and_copies_are_not_compared() -> None:
    rows = [row("a", draws(1, 0.5)), row("copy", draws(1, 0.5), duplicate_of="a")]
    rows.append(Row("broken", 1, "", error="it is empty"))
    found = {group.name: group for group in groups(rows, By.parse("build"))}
    assert (len(found["a"].rows), found["a"].differences) == (1, [])
    assert (found["unknown"].verdict, found["unknown"].unread) == ("inconclusive", 1)


def test_a_word_of_ones_own_is_taken_from_the_url() -> None:
    by = By.parse("rack=/(r[0-9]+)/")
    assert by.of(row("/data/r17/x.csv", draws(1, 0))) == "r17"
    assert by.of(row("/data/x.csv", draws(1, 0))) == "unknown"
    assert By.parse("kind=save|load").of(row("load.csv", draws(1, 0))) == "load"
    with pytest.raises(ValueError, match="one of build"):
        By.parse("colour")


def test_the_worst_recordings_come_first() -> None:
    rows = [row("none", draws(1, 0)), row("few", draws(2, 0.01)), row("many", draws(3, 0.5))]
    rows.append(Row("broken", 1, ""))
    assert [one.url for one in worst_first(rows)] == ["many", "few", "broken", "none"]


def test_the_page_holds_names_as_text_and_may_run_nothing(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    broken = Row("broken", 1, "", error="it is empty", remedy="record again")
    rows = [row(hostile, draws(1, 0.5), hostile), row("a", draws(2, 0.0)), broken]
    size = write_fleet_page(rows, groups(rows, By.parse("build")), "build", tmp_path / "f.html")
    text = (tmp_path / "f.html").read_text()
    assert len(text.encode()) == size
    assert "<script" not in text
    assert "\u202e" not in text
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text
    for said in ("1 could not be read", "surely more frequent", "qtrace explain", "record again"):
        assert said in text
    with pytest.raises(OutputExists):
        write_fleet_page(rows, [], "", tmp_path / "f.html")
