"""Who gives the BQL away inside a device access, of rows as the recorders write them."""

from __future__ import annotations

from pathlib import Path

from qtrace.analysis import open_traces
from qtrace.analysis.lint import LintResult
from qtrace.trace.schema import Event
from tests.unit.event_rows import (
    MAIN_LOOP,
    PID,
    VCPU_POLL,
    VCPU_TID,
    attach,
    detach,
    run,
    run_on_vcpu,
    schedule,
    write,
)

CLEANUP = {"name": "migration_cleanup_bh", "callback": 7}
OTHER = {"name": "job_exit", "callback": 8}


def lint(path: Path, *events: Event) -> LintResult:
    trace = write(path / "t.csv", [attach(all={}), *events, detach(10**12)])
    (result,) = open_traces(trace).lint(["bql-dropped"])
    return result


def returned(time_ns: int, tid: int, **what: object) -> Event:
    names = {"name": what["name"], "callback": what["callback"], "opaque": 0x55}
    return Event(time_ns, "return", tid, bh=0x99, **names)  # type: ignore[arg-type]


def on_vcpu(began: int, ended: int) -> list[Event]:
    return [run_on_vcpu(began, **CLEANUP), returned(ended, VCPU_TID, **CLEANUP)]


def on_main(began: int, ended: int) -> list[Event]:
    return [run(began, **OTHER), returned(ended, PID, **OTHER)]


def both(inner: list[Event], other: list[Event]) -> list[Event]:
    scheduled = [schedule(1, **CLEANUP), schedule(2, **OTHER)]
    return [*scheduled, *sorted([*inner, *other], key=lambda event: event.time_ns)]


def test_two_callbacks_that_need_the_bql_at_once_show_that_the_first_gave_it_away(
    tmp_path: Path,
) -> None:
    result = lint(tmp_path, *both(on_vcpu(100, 200), on_main(150, 160)))
    (found,) = result.findings
    assert (found.name, found.level, found.tid, found.count) == (
        "migration_cleanup_bh", "error", VCPU_TID, 1,
    )  # fmt: skip
    assert set(found.evidence()["event"]) == {"run"}
    assert set(found.evidence()["tid"]) == {PID, VCPU_TID}
    assert "the main thread" in found.sentence
    assert "job_exit" in found.sentence


def test_callbacks_one_after_the_other_show_nothing(tmp_path: Path) -> None:
    result = lint(tmp_path, *both(on_vcpu(100, 200), on_main(210, 220)))
    assert (result.result, result.findings) == ("none", [])


def test_a_callback_of_the_main_loop_may_give_it_away(tmp_path: Path) -> None:
    result = lint(tmp_path, *both(on_vcpu(150, 160), on_main(100, 200)))
    assert (result.result, result.findings) == ("none", [])


def test_a_callback_inside_another_one_of_its_own_thread_is_none(tmp_path: Path) -> None:
    inner = [run_on_vcpu(150, **OTHER), returned(160, VCPU_TID, **OTHER)]
    result = lint(tmp_path, *both(on_vcpu(100, 200), inner))
    assert (result.result, result.findings) == ("none", [])


def test_who_joins_a_thread_inside_a_poll_has_given_it_away(tmp_path: Path) -> None:
    stack = (*VCPU_POLL[:-1], "migration_cleanup_bh+0x10", "qemu_thread_join")
    call = Event(150, "call", VCPU_TID, "CPU 0/TCG", "vcpu", "qemu_thread_join", stack=stack)
    events = [schedule(1, **CLEANUP), *on_vcpu(100, 200), call]
    (found,) = lint(tmp_path, *sorted(events, key=lambda event: event.time_ns)).findings
    assert (found.name, found.facts["proof"], found.count) == ("migration_cleanup_bh", "call", 1)
    assert set(found.evidence()["event"]) == {"run", "call"}


def test_who_joins_one_in_the_main_loop_may(tmp_path: Path) -> None:
    stack = (*MAIN_LOOP[:-1], "migration_cleanup_bh+0x10", "qemu_thread_join")
    call = Event(150, "call", PID, "qemu-system-x86", "main", "qemu_thread_join", stack=stack)
    events = [schedule(1, **CLEANUP), run(100, **CLEANUP), call, returned(200, PID, **CLEANUP)]
    assert lint(tmp_path, *events).result == "none"


def test_where_a_callbacks_end_is_not_known_it_is_doubted(tmp_path: Path) -> None:
    result = lint(tmp_path, schedule(1, **CLEANUP), run_on_vcpu(100, **CLEANUP))
    assert result.result == "inconclusive"
    assert "when 1 of them returned is not known" in result.reason
