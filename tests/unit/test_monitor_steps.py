"""QMP commands and jobs that probes have seen, counted with few labels."""

from __future__ import annotations

from qtrace.monitor.last_events import MOST_BYTES, OVERHEAD, LastEvents
from qtrace.monitor.vm_steps import NEAR, OTHER, CommandNames, VmSteps

MS = 1_000_000
SP = 0x7FFF_0000


def command(steps: VmSteps, name: str, at_ns: int, took_ns: int, *, begun: bool = True) -> None:
    steps.step("command", at_ns, SP, 0, 0, name)
    if begun:
        # Its argument lies on the dispatcher's stack, which met the first step.
        steps.step("begin", at_ns + 1, 0x1000, SP + 64, 0, "")
    steps.step("reply", at_ns + took_ns, SP - 256, 0, 0, "")


def test_a_command_has_its_time_from_taken_to_answered() -> None:
    steps = VmSteps(CommandNames(10))
    command(steps, "query-block", 0, 5 * MS)
    command(steps, "query-block", 50 * MS, 2_000 * MS)
    report = steps.report(0)
    assert report["commands"] == {"query-block": 2}
    assert report["seconds"] == {"query-block": 2.005}
    assert report["buckets"] == [0, 1, 0, 0, 1, 0]
    assert report["waiting"] == {}


def test_what_is_not_answered_waits_and_is_reported_anew_without_a_hit() -> None:
    steps = VmSteps(CommandNames(10))
    steps.step("command", 0, SP, 0, 0, "stop")
    steps.step("begin", 1, 0x1000, SP + 64, 0, "")
    assert steps.report(3_000 * MS)["waiting"] == {"stop": 3.0}
    assert steps.changed
    assert steps.report(4_000 * MS)["waiting"] == {"stop": 4.0}


def test_two_dispatchers_are_told_apart_by_their_stacks() -> None:
    steps = VmSteps(CommandNames(10))
    steps.step("command", 0, SP, 0, 0, "stop")
    steps.step("command", 1, SP + 4 * NEAR, 0, 0, "cont")
    steps.step("reply", 2 * MS, SP - 256, 0, 0, "")
    assert list(steps.report(2 * MS)["waiting"]) == [OTHER]


def test_names_that_qemu_does_not_carry_out_make_no_labels() -> None:
    names = CommandNames(100)
    steps = VmSteps(names)
    for number in range(1000):
        command(steps, f"guessed-{number}", number, 1, begun=False)
    assert steps.report(0)["commands"] == {OTHER: 1000}


def test_a_thousand_names_are_a_hundred_labels() -> None:
    steps = VmSteps(CommandNames(100))
    for number in range(1000):
        command(steps, f"command-{number}", number, 1)
    counts = steps.report(0)["commands"]
    assert len(counts) == 101
    assert counts[OTHER] == 900


def test_a_job_is_one_of_its_last_status_until_it_is_gone() -> None:
    steps = VmSteps(CommandNames(1))
    for status in (1, 2, 10):
        steps.step("status", 0, SP, 0, status, "job0")
    steps.step("status", 0, SP, 0, 2, "job1")
    assert steps.report(0)["jobs"] == {10: 1, 2: 1}
    steps.gone = 10
    assert steps.report(0)["jobs"] == {2: 1}
    assert steps.report(0)["changes"] == {1: 1, 2: 2, 10: 1}


def test_of_the_last_events_the_oldest_go_first_and_what_is_missing_is_known() -> None:
    last = LastEvents(span_ns=100, since_ns=5)
    for time_ns in (10, 30, 20):
        last.add(time_ns, True, b"x")
    assert [time_ns for time_ns, *_ in last.take(50)] == [10, 20, 30]
    assert last.since_ns == 5
    assert [time_ns for time_ns, *_ in last.take(115)] == [20, 30]
    assert last.since_ns == 15
    # No more bytes than so many: all up to the last one that went are missing.
    last.add(40, False, bytes(MOST_BYTES - OVERHEAD))
    assert [time_ns for time_ns, *_ in last.take(115)] == [40]
    assert last.since_ns == 31
