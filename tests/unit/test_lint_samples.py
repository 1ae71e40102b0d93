"""What the lints say of real recordings (scripts/lint_samples.py makes them again).

Limits below the default stand where a sample is too short or its guest too small: what was
recorded is real all the same.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from qtrace.analysis import AnalysedTrace, open_traces
from qtrace.analysis.lint import LintResult
from qtrace.analysis.lints import LINTS

SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"

# Sample, lint, limit (None: the default), the bottom halves or functions found, the worst first.
FINDINGS = [
    ("pflash", "wrong-thread", None, ["job_exit", "snapshot_save_job_bh"]),
    ("pflash", "vm-stop", None, ["save_snapshot"]),
    ("pflash", "guest-polls", None, [""]),
    ("pflash", "exposure", None, ["snapshot_save_job_bh"]),
    ("qtest", "nested-loop", None, ["job_exit", "snapshot_save_job_bh"]),
    ("strand", "stranded", None, ["co_schedule_bh_cb", "snapshot_save_job_bh"]),
    ("strand", "stuck-wait", None, ["co_schedule_bh_cb"]),
    ("strand", "storm", "1000/s", ["snapshot_save_job_bh"]),
    ("strand", "busy-loop", "1000/s", ["snapshot_save_job_bh"]),
    ("bench", "lost-schedule", "20", ["thread_pool_completion_bh", "spawn_thread_bh_fn"]),
    ("save", "long-callback", "20ms", ["snapshot_save_job_bh"]),
    ("save", "starvation", "20ms", ["co_schedule_bh_cb"]),
    ("save", "late-reply", "20ms", ["snapshot-save"]),
    ("rerouted", "head-of-line", "15ms", ["do_qmp_dispatch_bh"]),
]
CONTROLS = ("main-loop", "idle", "bench", "bench-native")


@cache
def sample(name: str) -> AnalysedTrace:
    return open_traces(SAMPLES / f"lint-{name}.parquet")[0]


def answer(name: str, lint: str, limit: str | None) -> LintResult:
    (result,) = sample(name).lint([lint], {} if limit is None else {lint: limit})
    return result


@pytest.mark.parametrize(("name", "lint", "limit", "found"), FINDINGS)
def test_what_is_in_the_recording_is_found_with_its_rows(
    name: str, lint: str, limit: str | None, found: list[str]
) -> None:
    result = answer(name, lint, limit)
    assert result.result == "finding", result
    assert sorted(finding.name for finding in result.findings) == sorted(found)
    for finding in result.findings:
        assert finding.rows
        assert set(finding.evidence()["row"]) == set(finding.rows)
        assert finding.sentence


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("lint", LINTS)
def test_nothing_is_found_where_nothing_is_wrong(name: str, lint: str) -> None:
    result = answer(name, lint, None)
    assert (result.result, result.findings) == ("none", []), result


def test_each_lint_has_a_real_recording_that_shows_it() -> None:
    assert {lint for _name, lint, _limit, _found in FINDINGS} == set(LINTS)


def test_why_a_reply_was_late_is_told_from_the_recording() -> None:
    stock = answer("save", "late-reply", "20ms").findings[0]
    assert stock.facts["behind"] == "snapshot_save_job_bh"
    # With the proposed fix the reply is prompt, and other commands wait behind the save.
    assert answer("rerouted", "late-reply", "20ms").findings == []
    (behind,) = answer("rerouted", "head-of-line", "15ms").findings
    assert behind.facts["behind"] == "snapshot_save_job_bh"


def test_the_open_race_is_told_apart_from_a_near_miss() -> None:
    (race,) = answer("pflash", "exposure", None).findings
    assert race.facts["near_misses"] == 0
    assert race.facts["crossed_ppoll"] == race.count > 50
    assert set(race.evidence()["event"]) == {"schedule", "run"}


def test_the_device_behind_guest_polls_is_known_from_one_whole_stack() -> None:
    (polls,) = answer("pflash", "guest-polls", None).findings
    (path,) = polls.facts["paths"]
    assert path.startswith("aio_poll <- ")
    assert "blk_pwrite" in path
    assert "memory_region_dispatch_write" in path
