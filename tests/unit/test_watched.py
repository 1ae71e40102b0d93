"""The verdict alone is the one of the whole recording, and is never told of what was not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import Trace, exit_status, judge, judge_watched
from qtrace.errors import NoMatch
from tests.unit.event_rows import NAME, attach, detach, run, run_on_vcpu, schedule, write

SAMPLES = Path(__file__).parents[2] / "analysis/samples"
# The largest two are as another one is.
LARGE = ("held-7.2-tcg.parquet", "rerouted-7.2-tcg.parquet")
FILES = sorted(
    path
    for path in SAMPLES.iterdir()
    if path.suffix in (".csv", ".parquet") and path.name not in LARGE
)
SAME = ("verdict", "complete", "lost_events", "stuck", "computing", "held", "notes", "calls")


def without_numbers(halves: Any) -> list[dict[str, Any]]:
    """But for the numbers of instances, which only the whole recording has."""
    return [
        {**half, "findings": [{**one, "instance": None} for one in half["findings"]]}
        for half in halves
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_the_verdict_of_the_whole_recording(path: Path) -> None:
    whole: Any = judge(path)
    watched = Trace(path).watched
    part: Any = judge_watched(path, () if watched else [h["name"] for h in whole["bottom_halves"]])
    assert without_numbers(part["bottom_halves"]) == without_numbers(whole["bottom_halves"])
    assert {key: part[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert exit_status(part) == exit_status(whole)


def test_a_name_that_is_not_there_and_a_pattern_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [attach(), schedule(10), run(20), detach()])
    with pytest.raises(NoMatch, match="no bottom half of these recordings is 'other_bh'"):
        judge_watched(path, ["other_bh"])
    with pytest.raises(NoMatch, match="is a pattern"):
        judge_watched(path, ["snap*"])
    nothing = write(tmp_path / "b.csv", [attach(watched=[]), schedule(10), run(20), detach()])
    with pytest.raises(NoMatch, match="watched no bottom half"):
        judge_watched(nothing)
    assert judge_watched(nothing, [NAME])["verdict"] == "main-loop"


def test_what_was_read_in_part_answers_no_lint_and_no_statistics(tmp_path: Path) -> None:
    events = [attach(all=[]), schedule(10), run_on_vcpu(20), schedule(30, name="b"), detach()]
    report = judge_watched(write(tmp_path / "a.csv", events))
    assert report["statistics"] == report["elsewhere"] == [[]]
    assert {lint["lint"] for lint in report["lints"]} == {"long-command"}
    (half,) = report["bottom_halves"]
    assert [one["instance"] for one in half["findings"]] == [None]
