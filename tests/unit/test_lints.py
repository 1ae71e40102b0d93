"""What the lints say of rows as the recorders write them; on real recordings: test_lint_samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.analysis import open_traces
from qtrace.analysis.lint import Finding, LintResult, Threshold
from qtrace.errors import BadThreshold, NoSuchLint
from qtrace.trace.schema import Event
from tests.unit.event_rows import (
    NAME,
    VCPU_POLL,
    VCPU_TID,
    attach,
    detach,
    lost,
    run,
    run_on_vcpu,
    schedule,
    write,
)


def lint(path: Path, name: str, *events: Event, **thresholds: float | str) -> LintResult:
    """The result of one lint for a complete trace of these events."""
    trace = write(path / "t.csv", [attach(all={}), *events, detach(10**12)])
    limits = {key.replace("_", "-"): value for key, value in thresholds.items()}
    (result,) = open_traces(trace).lint([name], limits)
    return result


def only(result: LintResult) -> Finding:
    assert (result.result, len(result.findings)) == ("finding", 1)
    return result.findings[0]


def test_a_job_on_a_vcpu_thread_is_a_wrong_thread_and_a_completion_is_not(tmp_path: Path) -> None:
    kept = {"name": "thread_pool_completion_bh", "callback": 7}
    events = [schedule(10), run_on_vcpu(20), schedule(30, **kept), run_on_vcpu(40, **kept)]
    found = only(lint(tmp_path, "wrong-thread", *events))
    assert (found.name, found.level, found.tid, found.count) == (NAME, "error", VCPU_TID, 1)
    assert found.rows == (3, 4)
    assert list(found.evidence()["event"]) == ["schedule", "run"]


def test_a_completion_of_another_context_is_a_wrong_thread(tmp_path: Path) -> None:
    kept = {"name": "thread_pool_completion_bh", "callback": 7, "context": "iohandler", "ctx": 9}
    assert only(lint(tmp_path, "wrong-thread", schedule(30, **kept), run_on_vcpu(40, **kept)))


def test_vm_stop_counts_only_inside_a_poll_of_a_vcpu_thread(tmp_path: Path) -> None:
    inside = Event(25, "call", VCPU_TID, "CPU 0/TCG", "vcpu", "vm_stop", stack=VCPU_POLL)
    own = ("start_thread", "kvm_vcpu_thread_fn", "kvm_cpu_exec", "vm_stop")
    outside = Event(26, "call", VCPU_TID, "CPU 0/TCG", "vcpu", "vm_stop", stack=own)
    found = only(lint(tmp_path, "vm-stop", schedule(10), run_on_vcpu(20), inside, outside))
    assert (found.rows, found.instance, found.count) == ((5,), 0, 1)
    assert lint(tmp_path, "vm-stop", outside).result == "none"


def test_what_was_lost_or_cut_off_is_no_proof_of_health(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    events = [attach(), schedule(10), run(20)]
    for more in ([lost(21, 30, 3), detach()], []):
        (result,) = open_traces(write(path, [*events, *more])).lint(["wrong-thread"])
        assert (result.result, result.findings) == ("inconclusive", [])
        assert result.reason in ("events lost: 3", "the recording was cut off")


def test_a_proven_finding_stands_beside_losses_elsewhere(tmp_path: Path) -> None:
    events = [schedule(10), run_on_vcpu(20), lost(30, 40)]
    assert only(lint(tmp_path, "wrong-thread", *events))


def test_losses_around_it_leave_it_open(tmp_path: Path) -> None:
    result = lint(tmp_path, "wrong-thread", schedule(10), lost(12, 15), run_on_vcpu(20))
    assert (result.result, result.findings) == ("inconclusive", [])


def test_unknown_lints_and_thresholds_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NoSuchLint, match="wrong-thred") as unknown:
        lint(tmp_path, "wrong-thred", run(20))
    assert "wrong-thread" in unknown.value.remedy
    with pytest.raises(BadThreshold, match="has no threshold"):
        lint(tmp_path, "wrong-thread", run(20), wrong_thread="3")


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        (Threshold(5, "ns"), "10ms", 10_000_000),
        (Threshold(5, "ns"), "1.5s", 1_500_000_000),
        (Threshold(5, "/s"), "100/s", 100),
        (Threshold(5, "/s"), "100", 100),
        (Threshold(5, ""), "7", 7),
    ],
)
def test_a_threshold_is_written_with_its_unit(default: Threshold, text: str, value: float) -> None:
    assert default.parse(text) == Threshold(value, default.unit)


@pytest.mark.parametrize(
    ("default", "text"),
    [(Threshold(5, "ns"), "10"), (Threshold(5, "ns"), "10/s"), (Threshold(5, "/s"), "10ms"),
     (Threshold(5, ""), "x")],
)  # fmt: skip
def test_other_units_are_no_threshold(default: Threshold, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        default.parse(text)
