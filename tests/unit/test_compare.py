"""What came, what went, and what cannot be told, between traces of known events."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis.comparison import compare, compare_status
from qtrace.errors import ExitStatus
from tests.unit.event_rows import (
    NAME,
    attach,
    detach,
    lost,
    run,
    run_on_vcpu,
    schedule,
    write,
)


def trace(
    path: Path,
    saves: int,
    strikes: int = 0,
    wait_ns: int = 50,
    in_a_row: bool = False,
    **facts: Any,
) -> Path:
    """So many saves, of which so many ran on a vCPU thread."""
    events = [attach()]
    step = 1 if in_a_row else saves // max(strikes, 1)
    for number in range(saves):
        opaque = {"opaque": 0x100 + number}
        events.append(schedule(1000 * number + 10, **opaque))
        ran = run_on_vcpu if number % step == 0 and number // step < strikes else run
        events.append(ran(1000 * number + 10 + wait_ns, **opaque))
    return write(path, [*events, *facts.pop("more", []), detach(1000 * saves + 1000, **facts)])


def test_a_finding_that_came_is_new(tmp_path: Path) -> None:
    found = compare(trace(tmp_path / "a.csv", 30), trace(tmp_path / "b.csv", 30, strikes=2))
    assert compare_status(found) == ExitStatus.FINDING
    verdict = next(one for one in found["came"] if one["kind"] == "verdict")
    assert (verdict["name"], verdict["verdict"], verdict["count"]) == (NAME, "vcpu-poll", 2)
    assert verdict["evidence"]["rows"] == [3, 4]
    assert verdict["evidence"]["trace"].endswith("b.csv")


def test_a_finding_that_went_is_no_finding_and_says_how_sure_that_is(tmp_path: Path) -> None:
    before = trace(tmp_path / "a.csv", 300, strikes=13)
    found = compare(before, trace(tmp_path / "b.csv", 300))
    assert compare_status(found) == ExitStatus.OK
    (half,) = found["bottom_halves"]
    row = next(row for row in half["verdicts"] if row["verdict"] == "vcpu-poll")
    assert (row["before"], row["after"]) == ([13, 300], [0, 300])
    assert "surely rarer" in row["sentence"]
    assert {one["kind"] for one in found["gone"]} >= {"verdict"}
    few = compare(before, trace(tmp_path / "c.csv", 10))
    row = next(r for r in few["bottom_halves"][0]["verdicts"] if r["verdict"] == "vcpu-poll")
    assert "too few to tell" in row["sentence"]


def test_the_same_on_both_sides_is_nothing_new(tmp_path: Path) -> None:
    one = trace(tmp_path / "a.csv", 30, strikes=1)
    found = compare(one, trace(tmp_path / "b.csv", 30, strikes=2))
    assert (found["answer"], found["came"]) == ("none", [])


def test_what_is_inconclusive_after_may_be_new(tmp_path: Path) -> None:
    after = trace(tmp_path / "b.csv", 30, more=[lost(29_005, 29_100)], lost=1)
    found = compare(trace(tmp_path / "a.csv", 30), after)
    assert compare_status(found) == ExitStatus.INCONCLUSIVE
    assert "inconclusive" in found["why"]


def test_what_was_lost_after_may_be_new(tmp_path: Path) -> None:
    """Not one event of it was recorded, and some were lost."""
    before = trace(tmp_path / "a.csv", 20)
    after = write(tmp_path / "b.csv", [attach(), lost(5, 50, 3), detach(100, lost=3)])
    found = compare(before, after)
    assert compare_status(found) == ExitStatus.INCONCLUSIVE
    assert found["why"] == f"{NAME} after: no event of it was recorded, but events were lost"


def test_a_finding_is_not_gone_because_nothing_ran(tmp_path: Path) -> None:
    found = compare(trace(tmp_path / "a.csv", 30, strikes=1), trace(tmp_path / "b.csv", 0))
    assert compare_status(found) == ExitStatus.INCONCLUSIVE
    assert "not seen after" in found["why"]


def test_waits_are_compared(tmp_path: Path) -> None:
    sides = [trace(tmp_path / f"{ns}.csv", 30, wait_ns=ns) for ns in (50, 500)]
    (row,) = compare(*sides)["times"]
    assert [row["wait"][side]["p50_ns"] for side in ("before", "after")] == [50, 500]
    assert row["duration"] == {"before": None, "after": None}


LATER = ((schedule, 10), (run_on_vcpu, 15))


def test_strikes_in_a_row_tell_no_more_than_one(tmp_path: Path) -> None:
    """A race that strikes while two loops are in step has struck once."""
    before = trace(tmp_path / "a.csv", 300, strikes=13, in_a_row=True)
    found = compare(before, trace(tmp_path / "b.csv", 300))
    row = next(r for r in found["bottom_halves"][0]["verdicts"] if r["verdict"] == "vcpu-poll")
    assert row["bursts"] > 13
    assert "too few to tell" in row["sentence"]


def test_what_a_fix_schedules_elsewhere_is_compared_with_itself(tmp_path: Path) -> None:
    moved = {"context": "iohandler", "ctx": 9}
    before = write(tmp_path / "a.csv", [attach(), schedule(10), run(15), detach(100)])
    after = [attach(), schedule(10, **moved), run(40, **moved), detach(100)]
    (row,) = compare(before, write(tmp_path / "b.csv", after))["times"]
    assert row["context"] == "main > iohandler"
    assert [row["wait"][side]["p50_ns"] for side in ("before", "after")] == [5, 30]
    found = compare(
        write(tmp_path / "d.csv", [attach(), schedule(10), run_on_vcpu(15), detach(100)]),
        write(tmp_path / "e.csv", [attach(), *(e(t, **moved) for e, t in LATER), detach(100)]),
    )
    assert (found["came"], found["gone"]) == ([], [])
    # One that only came by a second context stays apart: nothing says which is which.
    both = [attach(), schedule(10), run(15), *after[1:-1], detach(100)]
    rows = compare(before, write(tmp_path / "c.csv", both))["times"]
    assert sorted(row["context"] for row in rows) == ["iohandler", "main"]


def test_a_folder_is_one_side(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(3):
        trace(tmp_path / f"many/{number}.csv", 10)
    found = compare(tmp_path / "many", trace(tmp_path / "b.csv", 10))
    assert found["bottom_halves"][0]["instances"] == [30, 10]


@pytest.mark.parametrize(("strikes", "status"), [(0, 0), (1, 1)])
def test_the_command_ends_with_the_answer(tmp_path: Path, strikes: int, status: int) -> None:
    before = trace(tmp_path / "a.csv", 20)
    after = trace(tmp_path / "b.csv", 20, strikes=strikes)
    command = [sys.executable, "-m", "qtrace", "diff", str(before), str(after)]
    for words in ([], ["--format", "json"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (status, "")
        if words:
            assert json.loads(done.stdout)["schema_version"] == 2
        else:
            assert done.stdout.splitlines()[0].startswith("new: " if strikes else "nothing new")


def test_a_file_that_is_no_trace_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("a,b\r\n1,2\r\n")
    command = [sys.executable, "-m", "qtrace", "diff"]
    command += [str(trace(tmp_path / "a.csv", 2)), str(tmp_path / "b.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "remedy: " in done.stderr
