"""What exactly the lints find in real recordings; that they find it: test_samples.

Limits below the default stand where a sample is too short for them: what was recorded is real all
the same.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import pytest

from qtrace.analysis import Trace, open_traces
from qtrace.analysis.lint import LintResult
from qtrace.analysis.lints import LINTS

SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"

# Sample, lint, limit (None: the default), the bottom halves or functions found, the worst first.
FINDINGS = [
    ("pflash-7.2-kvm", "wrong-thread", None, ["job_exit", "snapshot_save_job_bh"]),
    ("pflash-7.2-kvm", "vm-stop", None, ["save_snapshot"]),
    ("pflash-7.2-kvm", "guest-polls", None, [""]),
    ("pflash-7.2-kvm", "exposure", None, ["snapshot_save_job_bh"]),
    ("migrate-10.0-kvm", "bql-dropped", None, ["migration_bh_dispatch_bh"]),
    ("qtest-7.2", "nested-loop", None, ["job_exit", "snapshot_save_job_bh"]),
    ("stranded-7.2-tcg", "stranded", None, ["co_schedule_bh_cb", "snapshot_save_job_bh"]),
    ("stranded-7.2-tcg", "stuck-wait", None, ["co_schedule_bh_cb"]),
    ("stranded-7.2-tcg", "storm", "1000/s", ["snapshot_save_job_bh"]),
    ("stranded-7.2-tcg", "busy-loop", "1000/s", ["snapshot_save_job_bh"]),
    ("bench-7.2", "lost-schedule", "20", ["thread_pool_completion_bh", "spawn_thread_bh_fn"]),
    ("save-7.2-tcg", "long-command", "1us", ["snapshot-save", "job-dismiss", "query-status"]),
    ("save-7.2-tcg", "long-callback", None, ["snapshot_save_job_bh"]),
    ("save-7.2-tcg", "starvation", None, ["co_schedule_bh_cb"]),
    ("save-7.2-tcg", "late-reply", None, ["snapshot-save"]),
    ("save-rerouted-7.2-tcg", "head-of-line", None, ["co_schedule_bh_cb"]),
]


@cache
def sample(name: str) -> Trace:
    return open_traces(SAMPLES / f"all-{name}.parquet")[0]


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


def test_each_lint_has_a_real_recording_that_shows_it() -> None:
    """By its label, or here below its default threshold."""
    labels = tomllib.loads((SAMPLES / "labels.toml").read_text()).values()
    labelled = {lint for label in labels for lint in label.get("lints", {}).get("finding", ())}
    assert {lint for _name, lint, _limit, _found in FINDINGS} | labelled == set(LINTS)


def test_why_a_reply_was_late_is_told_from_the_recording() -> None:
    stock = answer("save-7.2-tcg", "late-reply", None).findings[0]
    assert stock.facts["behind"] == "snapshot_save_job_bh"
    # With the proposed fix the reply is prompt, and other commands wait behind the save.
    assert answer("save-rerouted-7.2-tcg", "late-reply", None).findings == []
    (behind,) = answer("save-rerouted-7.2-tcg", "head-of-line", None).findings
    assert behind.facts["behind"] == "snapshot_save_job_bh"


def test_the_open_race_is_told_apart_from_a_near_miss() -> None:
    (race,) = answer("pflash-7.2-kvm", "exposure", None).findings
    assert race.facts["near_misses"] == 0
    assert race.facts["crossed_ppoll"] == race.count > 50
    assert set(race.evidence()["event"]) == {"schedule", "run"}


def test_the_device_behind_guest_polls_is_known_from_one_whole_stack() -> None:
    (polls,) = answer("pflash-7.2-kvm", "guest-polls", None).findings
    (path,) = polls.facts["paths"]
    assert path.startswith("aio_poll <- ")
    assert "blk_pwrite" in path
    assert "memory_region_dispatch_write" in path
