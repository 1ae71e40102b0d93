"""Why a QMP command was answered late: what ran between its end and its reply."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qtrace.analysis import Trace, judge
from qtrace.analysis.late_replies import late_replies
from qtrace.trace.reader import TraceFile
from qtrace.trace.schema import Event
from tests.unit.event_rows import IOTHREAD_TID, NAME, PID, VCPU_TID, recording, run, schedule

MS = 1_000_000


def step(time_ms: float, step: str, number: int = 1, command: str = "snapshot-save") -> Event:
    detail = {"step": step, "number": number}
    return Event(int(time_ms * MS), "qmp", PID, "qemu", "main", name=command, detail=detail)


def ran(from_ms: int, until_ms: int, **changes: Any) -> list[Event]:
    one = run(from_ms * MS, **changes)
    return [one, replace(one, time_ns=until_ms * MS, event="return", stack=())]


def late(path: Path, *events: Event) -> TraceFile:
    begin = [schedule(2 * MS), step(1, "command"), step(2, "begin"), step(3, "end")]
    return recording(path / "trace.csv", *begin, *events)


def test_the_bottom_half_that_ran_first_is_named_with_its_duration(tmp_path: Path) -> None:
    trace = late(tmp_path, *ran(4, 90), step(91, "reply"))
    (found,) = late_replies([Trace(trace)])
    assert (found["command"], found["count"], found["waited_for"]) == ("snapshot-save", 1, NAME)
    assert (found["done_after_ns"], found["replied_after_ns"]) == (2 * MS, 90 * MS)
    assert (found["ran_ns"], found["tid"], found["role"]) == (86 * MS, PID, "main")
    assert judge([trace])["late_replies"] == [found]


def test_a_prompt_reply_is_none_however_long_the_job_takes(tmp_path: Path) -> None:
    assert late_replies([Trace(late(tmp_path, step(3.1, "reply"), *ran(4, 90)))]) == []


def test_what_a_vcpu_ran_of_the_main_context_held_the_bql(tmp_path: Path) -> None:
    trace = late(tmp_path, *ran(4, 90, tid=VCPU_TID, role="vcpu"), step(91, "reply"))
    (found,) = late_replies([Trace(trace)])
    assert (found["waited_for"], found["ran_ns"]) == (NAME, 86 * MS)
    assert (found["tid"], found["role"]) == (VCPU_TID, "vcpu")


def test_what_an_iothread_ran_is_no_reason(tmp_path: Path) -> None:
    one = ran(4, 90, tid=IOTHREAD_TID, role="iothread", context="iothread:io0")
    (found,) = late_replies([Trace(late(tmp_path, *one, step(91, "reply")))])
    assert (found["waited_for"], found["ran_ns"]) == ("", 0)
    assert (found["tid"], found["role"]) == (PID, "main")


def test_many_of_a_kind_are_one_with_the_worst_times(tmp_path: Path) -> None:
    again = [step(101, "command", 2), step(102, "end", 2), *ran(103, 300), step(301, "reply", 2)]
    (found,) = late_replies([Trace(late(tmp_path, *ran(4, 90), step(91, "reply"), *again))])
    assert (found["count"], found["replied_after_ns"]) == (2, 200 * MS)


def test_a_command_that_was_never_answered_is_not_judged(tmp_path: Path) -> None:
    assert late_replies([Trace(late(tmp_path, *ran(4, 90)))]) == []
