"""What ran on threads that do not own its context is listed, watched or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.cli.output import stdout
from qtrace.cli.views.verdict_view import print_report
from tests.unit.event_rows import NAME, attach, detach, recording, run, run_on_vcpu, schedule, write

SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"
OTHER = {"name": "job_exit", "callback": 8}


def test_a_real_recording_lists_what_nobody_watched() -> None:
    report = judge([SAMPLES / "all-migrate-10.0-kvm.parquet"])
    ((first, *others),) = report["elsewhere"]
    assert (first["name"], first["verdict"], first["count"], first["runs"]) == (
        "migration_bh_dispatch_bh", "vcpu-poll", 1, 2,
    )  # fmt: skip
    assert (first["role"], first["awaited"]) == ("vcpu", False)
    assert {row["name"] for row in others} == {"dummy_bh_cb", "thread_pool_completion_bh"}
    assert all(row["awaited"] for row in others)
    assert report["verdict"] == "not-seen", "none of these was watched"


def test_without_every_bottom_half_there_is_no_list(tmp_path: Path) -> None:
    trace = recording(tmp_path / "t.csv", schedule(10), run_on_vcpu(20))
    assert judge(trace)["elsewhere"] == [[]]


def test_a_glob_that_is_left_to_the_rows_of_all_is_judged_by_them(tmp_path: Path) -> None:
    rows = [schedule(10), run(20), schedule(30, **OTHER), run_on_vcpu(40, **OTHER)]
    header = attach(all={}, watched=[], by_all=["job_*"])
    trace = write(tmp_path / "t.csv", [header, *rows, detach()])
    report = judge([trace])
    (half,) = report["bottom_halves"]
    assert (half["name"], half["verdict"]) == ("job_exit", "vcpu-poll")
    assert report["verdict"] == "vcpu-poll"


def test_a_glob_that_meant_nothing_leaves_nothing_to_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = attach(all={}, watched=[], by_all=["nosuch*"])
    trace = write(tmp_path / "t.csv", [header, schedule(10), run(20), detach()])
    report = judge([trace])
    assert (report["bottom_halves"], report["verdict"]) == ([], "not-seen")
    assert NAME in {row["name"] for rows in report["statistics"] for row in rows}
    print_report(stdout(), report)
    assert "no bottom half that matches nosuch* was scheduled" in capsys.readouterr().out
