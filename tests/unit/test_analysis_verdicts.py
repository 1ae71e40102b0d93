"""Each verdict from exactly the evidence that proves it, and `inconclusive` without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import SEVERITY, exit_status, judge, open_traces, worst
from qtrace.analysis.stacks import judge_stack
from qtrace.errors import ExitStatus, NoMatch, TraceUnreadable
from qtrace.trace.schema import PARTIAL, TRUNCATED, UNREADABLE, Event
from tests.unit.event_rows import (
    BARE_POLL,
    CALLBACK,
    DISPATCH,
    IOTHREAD_TID,
    LEAF,
    MAIN_LOOP,
    NAME,
    NESTED,
    NESTED_FOR_DEVICE,
    PID,
    ROOT,
    SCHEDULE_STACK,
    VCPU_POLL,
    VCPU_TID,
    WORKER_TID,
    attach,
    detach,
    lost,
    recording,
    run,
    run_on_vcpu,
    schedule,
    write,
)

LOAD = "snapshot_load_job_bh"
IOTHREAD: dict[str, Any] = {"tid": IOTHREAD_TID, "role": "iothread", "thread": "IO io0"}
OWN: dict[str, Any] = {"context": "iothread:io0", "ctx": 0x2000}
WORKER: dict[str, Any] = {"tid": WORKER_TID, "role": "worker", "thread": "worker"}
OTHER: dict[str, Any] = {"tid": WORKER_TID, "role": "other", "thread": "qemu-system-x86"}
IMAGE: dict[str, Any] = {"target": {"pid": PID, "program": "qemu-img"}}


def only(report: dict[str, Any]) -> dict[str, Any]:
    (half,) = report["bottom_halves"]
    return dict(half)


def verdicts(path: Path, *events: Event, **header: Any) -> dict[str, int]:
    counts = only(judge(recording(path / "t.csv", *events, **header)))["verdicts"]
    return dict(counts)


DISPATCHED = "g_main_context_dispatch+0x299"
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "main loop": ("main-loop", {}, {}),
    "nested poll": ("nested-poll", {"stack": NESTED}, {}),
    "qemu-img's poll is its loop": ("main-loop", {"stack": NESTED}, IMAGE),
    "iothread's own poll": ("iothread", {**IOTHREAD, **OWN, "stack": BARE_POLL}, {}),
    "iothread's glib loop": ("iothread", {**IOTHREAD, **OWN, "stack": MAIN_LOOP}, {}),
    "iothread polls main": ("foreign-poll", {**IOTHREAD, "stack": BARE_POLL}, {}),
    "vCPU thread": ("vcpu-poll", {"role": "vcpu", "tid": VCPU_TID, "stack": VCPU_POLL}, {}),
    "vCPU thread known by its frames": ("vcpu-poll", {**OTHER, "stack": VCPU_POLL}, {}),
    "migration thread": ("foreign-poll", {**OTHER, "role": "migration", "stack": BARE_POLL}, {}),
    "worker": ("foreign-poll", {**WORKER, "stack": BARE_POLL}, {}),
    "unnamed thread polls main": ("foreign-poll", {**OTHER, "stack": BARE_POLL}, {}),
    "unnamed thread, unknown context": (
        "inconclusive", {**OTHER, "context": "", "ctx": 0, "stack": BARE_POLL}, {},
    ),
    "unnamed thread may be an IOThread": ("inconclusive", {**OTHER, **OWN, "stack": BARE_POLL}, {}),
    "role not known": ("inconclusive", {"role": "", "tid": VCPU_TID, "stack": BARE_POLL}, {}),
    "main thread known by its id": ("main-loop", {"role": ""}, {}),
    "no stack": ("inconclusive", {"stack": ()}, {}),
    "unreadable": ("inconclusive", {"stack": (UNREADABLE,)}, {}),
    "cut before the dispatcher": ("inconclusive", {"stack": (TRUNCATED, *LEAF)}, {}),
    "no dispatcher": ("inconclusive", {"stack": ("main", NAME)}, {}),
    "aio_bh_poll called directly": ("nested-poll", {"stack": (*ROOT, "blk_insert_bs", *LEAF)}, {}),
    "no more than asked for": (
        "main-loop", {"stack": (PARTIAL, "aio_dispatch+0x1e", *LEAF)}, {},
    ),
    "nothing of QEMU's has a name": (
        "inconclusive", {"stack": ("main", DISPATCHED, "qemu@0x97dcfe", "qemu@0x97e1b6", NAME)}, {},
    ),
    "less than the dispatcher": ("inconclusive", {"stack": (PARTIAL, *LEAF)}, {}),
    "cut behind the dispatcher": ("main-loop", {"stack": (TRUNCATED, *DISPATCH, *LEAF)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_the_run_itself_decides(tmp_path: Path, case: str) -> None:
    verdict, changes, header = RUNS[case]
    where = {key: changes[key] for key in ("context", "ctx") if key in changes}
    assert verdicts(tmp_path, schedule(10, **where), run(20, **changes), **header) == {verdict: 1}


def test_a_run_whose_schedule_was_before_the_recording_is_judged(tmp_path: Path) -> None:
    half = only(judge(recording(tmp_path / "t.csv", run_on_vcpu(20))))
    assert half["scheduled"] == 0
    (finding,) = half["findings"]
    assert finding["scheduled_ns"] is None
    assert finding["scheduled_by_tid"] is None
    assert finding["evidence"]["rows"] == [3]


def test_taken_off_before_it_ran(tmp_path: Path) -> None:
    events = [
        schedule(10, bh=5),
        Event(11, "cancel", name=NAME, bh=5, callback=CALLBACK),
    ]
    assert verdicts(tmp_path, *events) == {"cancelled": 1}


def test_never_run_is_pending_only_in_a_whole_trace_with_a_working_probe(tmp_path: Path) -> None:
    events = [schedule(10), run(20), schedule(30)]
    assert verdicts(tmp_path, *events) == {"main-loop": 1, "pending": 1}
    path = write(tmp_path / "cut.csv", [attach(), *events])
    half = only(judge(path))
    assert half["verdicts"] == {"main-loop": 1, "inconclusive": 1}
    assert half["notes"] == ["1 inconclusive: the trace was cut off before it ran"]


def test_one_schedule_alone_is_pending_but_two_show_a_silent_run_probe(tmp_path: Path) -> None:
    assert verdicts(tmp_path, schedule(10)) == {"pending": 1}
    report = judge(recording(tmp_path / "t2.csv", schedule(10), schedule(20)))
    assert only(report)["verdicts"] == {"inconclusive": 2}
    assert "the probe on its run never fired" in only(report)["notes"][0]
    assert exit_status(report) == ExitStatus.INCONCLUSIVE


def test_a_silent_schedule_probe_makes_it_inconclusive(tmp_path: Path) -> None:
    report = judge(recording(tmp_path / "t.csv", run(10), run(20)))
    half = only(report)
    assert half["verdicts"] == {"main-loop": 2}
    assert half["verdict"] == report["verdict"] == "inconclusive"
    assert "schedule never fired" in half["notes"][0]
    assert exit_status(report) == ExitStatus.INCONCLUSIVE


def test_runs_that_were_scheduled_elsewhere_are_told(tmp_path: Path) -> None:
    """As by gdb in the experiment of the mail thread: 2 scheduled, 77 ran."""
    report = judge(recording(tmp_path / "t.csv", schedule(5), run(10), run(20), run(30)))
    half = only(report)
    assert (half["scheduled"], half["verdicts"]) == (1, {"main-loop": 3})
    assert half["notes"] == [
        "2 of its runs were scheduled before the recording, or elsewhere than where it is watched"
    ]
    assert exit_status(report) == ExitStatus.OK


def test_a_finding_wins_over_a_silent_schedule_probe(tmp_path: Path) -> None:
    report = judge(recording(tmp_path / "t.csv", run(10), run_on_vcpu(20)))
    assert report["verdict"] == "vcpu-poll"
    assert exit_status(report) == ExitStatus.FINDING


LOSSES = {
    "before": (lost(1, 9), {"vcpu-poll": 1, "main-loop": 1}),
    "within the first": (lost(12, 15), {"inconclusive": 1, "main-loop": 1}),
    "until its schedule": (lost(5, 10), {"inconclusive": 1, "main-loop": 1}),
    "between": (lost(21, 29), {"vcpu-poll": 1, "main-loop": 1}),
    "over both": (lost(15, 35), {"inconclusive": 2}),
    "after": (lost(41, 50), {"vcpu-poll": 1, "main-loop": 1}),
}


@pytest.mark.parametrize("where", LOSSES)
def test_a_loss_within_a_life_leaves_it_open(tmp_path: Path, where: str) -> None:
    loss, expected = LOSSES[where]
    events = [schedule(10), run_on_vcpu(20), schedule(30), run(40), loss]
    assert verdicts(tmp_path, *events) == expected


def test_unknown_ends_of_a_life_reach_to_the_ends_of_the_trace(tmp_path: Path) -> None:
    assert verdicts(tmp_path, lost(1, 2), run_on_vcpu(20)) == {"inconclusive": 1}
    assert verdicts(tmp_path, schedule(10), lost(50, 60)) == {"inconclusive": 1}


def test_not_seen_is_certain_only_without_losses(tmp_path: Path) -> None:
    report = judge(recording(tmp_path / "t.csv"))
    assert only(report)["verdict"] == report["verdict"] == "not-seen"
    assert exit_status(report) == ExitStatus.OK
    report = judge(recording(tmp_path / "l.csv", lost(5, 6, 4)))
    assert report["lost_events"] == 4
    assert report["verdict"] == "inconclusive"


def test_the_report_is_the_one_scripts_rely_on(tmp_path: Path) -> None:
    watched = [{"name": NAME}, {"name": LOAD}]
    events = [schedule(10), run(20), schedule(30, tid=7), run_on_vcpu(42)]
    report = judge(recording(tmp_path / "t.csv", *events, watched=watched))
    assert json.loads(json.dumps(report)) == report
    assert report["verdict"] == "vcpu-poll"
    assert report["complete"] is True
    assert report["lost_events"] == 0
    assert report["target"]["pid"] == PID
    save, load_job = report["bottom_halves"]
    assert (save["scheduled"], save["verdicts"]) == (2, {"main-loop": 1, "vcpu-poll": 1})
    assert (load_job["name"], load_job["verdict"], load_job["verdicts"]) == (LOAD, "not-seen", {})
    (finding,) = save["findings"]
    assert finding == {
        "verdict": "vcpu-poll",
        "instance": 1,
        "thread": "CPU 0/TCG",
        "role": "vcpu",
        "tid": VCPU_TID,
        "context": "main",
        "time_ns": 42,
        "scheduled_ns": 30,
        "scheduled_by_tid": 7,
        "scheduled_by_thread": "qemu-system-x86",
        "scheduled_by_role": "main",
        "scheduled_stack": ["qemu-system-x86_64@0x60a100", "job_co_entry", SCHEDULE_STACK[0]],
        "stack": [
            NAME, "aio_bh_poll", "aio_poll", "blk_pwrite", "memory_region_dispatch_write",
            "cpu_exec", "mttcg_cpu_thread_fn", "start_thread",
        ],
        "deciding_frame": 2,
        "device_frame": 4,
        "evidence": {"trace": str(tmp_path / "t.csv"), "rows": [5, 6]},
    }  # fmt: skip


def test_strict_makes_a_nested_poll_for_a_device_a_finding(tmp_path: Path) -> None:
    plain = recording(tmp_path / "a.csv", schedule(10), run(20, stack=NESTED))
    device = recording(tmp_path / "b.csv", schedule(10), run(20, stack=NESTED_FOR_DEVICE))
    assert exit_status(judge([plain, device])) == ExitStatus.OK
    assert exit_status(judge(plain, strict=True)) == ExitStatus.OK
    report = judge([plain, device], strict=True)
    assert report["verdict"] == "nested-poll"
    assert [finding["verdict"] for finding in only(report)["findings"]] == ["nested-poll"]
    assert exit_status(report) == ExitStatus.FINDING


def test_several_traces_give_one_verdict(tmp_path: Path) -> None:
    recording(tmp_path / "a.csv", schedule(10), run(20))
    recording(tmp_path / "b.csv", schedule(10), run_on_vcpu(20))
    for source in (tmp_path, str(tmp_path / "*.csv"), [tmp_path / "a.csv", tmp_path / "b.csv"]):
        assert only(judge(source))["verdicts"] == {"main-loop": 1, "vcpu-poll": 1}
    assert len(open_traces(tmp_path)) == 2
    with pytest.raises(TraceUnreadable, match="no trace at"):
        open_traces(tmp_path / "*.parquet")


def test_patterns_choose_and_unknown_ones_show_the_nearest(tmp_path: Path) -> None:
    trace = recording(tmp_path / "t.csv", schedule(5, name="job_exit"), schedule(6, name="job_bh"))
    report = judge(trace, ["job_*"])
    assert [half["name"] for half in report["bottom_halves"]] == ["job_exit", "job_bh"]
    assert only(judge(trace))["name"] == NAME
    with pytest.raises(NoMatch) as caught:
        judge(trace, ["job_exot"])
    assert "job_exit" in caught.value.remedy


def test_plain_calls_are_counted_by_role_with_their_stacks(tmp_path: Path) -> None:
    calls = [
        Event(5, "call", PID, "main", "main", "vm_stop", stack=("main", "vm_stop")),
        Event(6, "call", PID, "main", "main", "vm_stop", stack=("main", "vm_stop")),
        Event(7, "call", VCPU_TID, "", "other", "vm_stop", stack=("cpu_exec+0x2", "vm_stop")),
    ]
    (call,) = judge(recording(tmp_path / "t.csv", *calls))["calls"]
    assert (call["name"], call["count"], call["roles"]) == ("vm_stop", 3, {"main": 2, "vcpu": 1})
    assert [(row["count"], row["stack"]) for row in call["stacks"]] == [
        (2, ["vm_stop", "main"]),
        (1, ["vm_stop", "cpu_exec"]),
    ]


def test_severity_has_one_order() -> None:
    assert worst(["main-loop", "pending", "vcpu-poll", "inconclusive"]) == "vcpu-poll"
    assert worst([]) == SEVERITY[-1] == "not-seen"


def test_the_innermost_dispatcher_decides() -> None:
    facts = judge_stack(";".join(("aio_poll+0x1", "main_loop_wait", "aio_dispatch+0x9", *LEAF)))
    assert (facts.dispatcher, facts.deciding_frame, facts.in_poll) == ("loop", 2, True)
    assert judge_stack(";".join(("aio_poll.part.0+0x1", *LEAF))).dispatcher == "poll"
    assert judge_stack(f"my_aio_poll+0x1;{NAME}").dispatcher == ""


def test_whoever_calls_aio_bh_poll_itself_is_a_nested_loop() -> None:
    # bdrv_graph_wrunlock() of 10.0, a tail call: its own frame is gone.
    facts = judge_stack(";".join(("aio_dispatch+0x9", "f+0x1", "blk_insert_bs+0x69", *LEAF)))
    assert (facts.dispatcher, facts.deciding_frame, facts.in_poll) == ("poll", 1, True)
    # aio_dispatch() inlined into its static caller is still the main loop.
    facts = judge_stack(";".join(("g_main_context_dispatch+0x9", "qemu@0x1", *LEAF)))
    assert (facts.dispatcher, facts.in_poll) == ("loop", False)


def test_findings_are_in_time_order_whatever_the_file_says(tmp_path: Path) -> None:
    late, early = run_on_vcpu(40, opaque=1), run_on_vcpu(30, opaque=2)
    events = [schedule(10, opaque=1), schedule(20, opaque=2), late, early]
    path = write(tmp_path / "t.csv", [attach(), *events, detach()])
    assert [finding["time_ns"] for finding in only(judge(path))["findings"]] == [30, 40]


def test_the_shipped_recording_shows_issue_2111() -> None:
    folder = Path(__file__).parents[2] / "analysis" / "samples"
    report = judge(folder / "vcpu-poll-7.2-tcg.csv")
    half = only(report)
    assert (half["name"], half["scheduled"]) == (NAME, 24)
    assert half["verdicts"] == {"main-loop": 12, "vcpu-poll": 12}
    finding = half["findings"][0]
    assert finding["stack"][:3] == [NAME, "aio_bh_poll", "aio_poll"]
    assert finding["stack"][finding["device_frame"]] == "memory_region_dispatch_write"
    assert report["calls"][0]["roles"] == {"main": 12, "vcpu": 12}
