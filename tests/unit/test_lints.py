"""What the lints say of rows as the recorders write them; on real recordings: test_lint_samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import open_traces
from qtrace.analysis.lint import Finding, LintResult, Threshold
from qtrace.analysis.lints import LINTS, choose
from qtrace.errors import BadThreshold, NoSuchLint
from qtrace.trace.schema import Event
from scripts import lint_table
from tests.unit.event_rows import (
    BARE_POLL,
    CALLBACK,
    CTX,
    IOTHREAD_TID,
    NAME,
    NESTED,
    OPAQUE,
    PID,
    VCPU_POLL,
    VCPU_TID,
    WORKER_TID,
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
    with pytest.raises(NoSuchLint, match="'all'"):
        lint(tmp_path, "storm", run(20), all="3")


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


MS = 1_000_000
LOOP = ("g_main_context_dispatch+0x17a", "aio_dispatch+0x53", "aio_bh_poll+0xc5")


def ran(began: int, ended: int, name: str, *, before: int = 1_000, **changes: Any) -> list[Event]:
    """A bottom half from its schedule to its return; the keys tell apart what is not the same."""
    callback = 0x1000 + sum(name.encode())
    what = {"name": name, "callback": callback, "bh": callback << 8} | changes
    return [
        schedule(began - before, **(what | {"bh": 0})),
        run(began, **({"stack": (*LOOP, name)} | what)),
        Event(ended, "return", **{"tid": PID, "role": "main", "stack": ()} | {
            key: what[key] for key in what if key not in ("stack", "opaque", "ctx", "context")
        }),
    ]  # fmt: skip


def in_iohandler(*args: Any, **changes: Any) -> list[Event]:
    return ran(*args, context="iohandler", ctx=0x2000, **changes)


def ordered(*groups: list[Event]) -> list[Event]:
    return sorted((event for group in groups for event in group), key=lambda e: e.time_ns)


def test_what_a_nested_poll_waits_for_may_run_in_it_and_a_command_may_not(tmp_path: Path) -> None:
    outer = ran(1 * MS, 9 * MS, "ide_restart_bh")
    inner = ran(3 * MS, 4 * MS, "do_qmp_dispatch_bh", stack=NESTED)
    awaited = ran(5 * MS, 6 * MS, "thread_pool_completion_bh", stack=NESTED)
    found = only(lint(tmp_path, "nested-loop", *ordered(outer, inner, awaited)))
    assert (found.name, found.facts["inside"]) == ("do_qmp_dispatch_bh", "ide_restart_bh")
    assert found.facts["waits"] == "job_finish_sync_locked"
    ended = ran(5 * MS, 6 * MS, "job_exit", stack=NESTED)
    assert lint(tmp_path, "nested-loop", *ordered(outer, ended)).result == "none"
    assert lint(tmp_path, "nested-loop", *ordered(outer, awaited)).result == "none"


def test_what_a_coroutine_calls_outside_of_itself_is_what_its_poll_waits_for(
    tmp_path: Path,
) -> None:
    outer = ran(1 * MS, 9 * MS, "do_qmp_dispatch_bh")
    wrapped = ran(3 * MS, 4 * MS, "bdrv_open_bh", stack=NESTED)
    assert lint(tmp_path, "nested-loop", *ordered(outer, wrapped)).result == "none"
    # Somebody else's, which was pending before.
    before = ran(3 * MS, 4 * MS, "bdrv_open_bh", stack=NESTED, before=2 * MS + MS // 2)
    found = only(lint(tmp_path, "nested-loop", *ordered(outer, before)))
    assert found.name == "bdrv_open_bh"


def test_a_poll_inside_a_run_is_nested_on_an_iothread(tmp_path: Path) -> None:
    own = {"tid": IOTHREAD_TID, "role": "iothread", "thread": "IO 0", "context": "iothread:0"}
    outer = ran(1 * MS, 9 * MS, "outer", **own, stack=BARE_POLL)
    inner = ran(3 * MS, 4 * MS, "inner", **own, stack=BARE_POLL)
    found = only(lint(tmp_path, "nested-loop", *ordered(outer, inner)))
    assert (found.name, found.facts["inside"]) == ("inner", "outer")


def test_a_long_callback_names_its_length_and_who_waited_behind_it(tmp_path: Path) -> None:
    long, short = ran(1 * MS, 151 * MS, "slow"), ran(200 * MS, 299 * MS, "quick")
    behind = in_iohandler(160 * MS, 161 * MS, "behind", before=100 * MS)
    found = only(lint(tmp_path, "long-callback", *ordered(long, behind, short)))
    assert (found.name, found.value, found.unit) == ("slow", 150 * MS, "ns")
    assert found.facts["behind"] == {
        "count": 1, "name": "behind", "context": "iohandler", "wait_ns": 91 * MS,
    }  # fmt: skip
    assert list(found.evidence()["event"]) == ["run", "return"]
    longer = lint(tmp_path, "long-callback", *ordered(long, short), long_callback="160ms")
    assert (longer.result, str(longer.threshold)) == ("none", "160 ms")


def ending(path: Path, *events: Event, end_ms: int, **facts: Any) -> LintResult:
    """What long-callback says of a recording that ends then."""
    trace = write(path / "t.csv", [attach(all={}), *events, detach(end_ms * MS, **facts)])
    return open_traces(trace).lint(["long-callback"])[0]


def test_a_callback_that_never_returned_is_long_as_far_as_that_is_certain(tmp_path: Path) -> None:
    cut = ran(1 * MS, 2, "cut")[:2]
    inside = ran(50 * MS, 60 * MS, "inner", detail={"depth": 1})[1:]
    found = only(ending(tmp_path, *cut, *inside, end_ms=900, until_ns=700 * MS))
    assert (found.name, found.value, found.facts["returned"]) == ("cut", 699 * MS, False)
    assert "for 699 ms or longer: it had not returned when the recording ended" in found.sentence
    assert list(found.evidence()["event"]) == ["run", "detach"]


def test_what_only_lost_its_return_to_the_end_of_the_probes_is_not_long(tmp_path: Path) -> None:
    cut = ran(1 * MS, 2, "cut")[:2]
    result = ending(tmp_path, *cut, end_ms=900, until_ns=80 * MS)
    assert (result.result, result.facts["without_end"]) == ("none", 1)
    # Its thread ran something outside of it later: the return was missed.
    later = run(50 * MS, name="later", callback=9, bh=9, detail={"depth": 0})
    assert ending(tmp_path, *cut, later, end_ms=900, until_ns=140 * MS).result == "none"


def test_an_older_recording_does_not_tell_when_its_probes_went_off(tmp_path: Path) -> None:
    cut = ran(1 * MS, 2, "cut")[:2]
    assert ending(tmp_path, *cut, end_ms=240).result == "none"
    result = ending(tmp_path, *cut, end_ms=9000)
    assert result.result == "inconclusive"
    assert result.reason == "whether cut was still running at the end is not known"


def test_a_callback_in_which_the_target_ended_lasted_until_its_last_event(tmp_path: Path) -> None:
    last = Event(400 * MS, "schedule", VCPU_TID, "CPU 0/TCG", "vcpu", "x", callback=9)
    gone = Event(800 * MS, "exit", detail={"signal": 9})
    found = only(ending(tmp_path, *ran(1 * MS, 2, "cut")[:2], last, gone, end_ms=900, until_ns=1))
    assert found.value == 399 * MS
    assert "it had not returned when the target ended" in found.sentence


def test_a_callback_around_which_something_was_lost_may_have_returned(tmp_path: Path) -> None:
    cut = [*ran(1 * MS, 2, "cut")[:2], lost(30 * MS, 40 * MS)]
    assert ending(tmp_path, *cut, end_ms=900, until_ns=700 * MS).result == "inconclusive"


def test_a_callback_around_which_events_were_lost_is_not_long(tmp_path: Path) -> None:
    events = ordered(ran(1 * MS, 151 * MS, "slow"), [lost(5 * MS, 6 * MS)])
    assert lint(tmp_path, "long-callback", *events).result == "inconclusive"


def again(count: int, gap: int, name: str = "spins", **changes: Any) -> list[Event]:
    """A bottom half that schedules itself in each of its runs."""
    groups = [
        ran(MS + gap * n, MS + gap * n + gap // 2, name, before=gap - gap // 4, **changes)
        for n in range(count)
    ]
    return ordered(*groups)


def test_a_bottom_half_that_schedules_itself_is_a_storm_and_a_busy_loop(tmp_path: Path) -> None:
    events = again(1_200, 20_000)
    storm = only(lint(tmp_path, "storm", *events))
    assert (storm.name, storm.count, storm.unit) == ("spins", 1_199, "/s")
    assert only(lint(tmp_path, "busy-loop", *events)).facts["names"] == ["spins"]
    assert lint(tmp_path, "storm", *events, storm="20000/s").result == "none"


def test_two_that_wake_each_other_are_a_busy_loop_but_no_storm(tmp_path: Path) -> None:
    turns = [
        ran(MS + 20_000 * n, MS + 20_000 * n + 10_000, ("ping", "pong")[n % 2], before=15_000)
        for n in range(1_200)
    ]
    found = only(lint(tmp_path, "busy-loop", *ordered(*turns)))
    assert set(found.facts["names"]) == {"ping", "pong"}
    assert lint(tmp_path, "storm", *ordered(*turns)).result == "none"


def test_requests_at_any_rate_are_no_busy_loop(tmp_path: Path) -> None:
    turns = [ran(MS + 2_000 * n, MS + 2_000 * n + 900, "work", before=1_000) for n in range(2_000)]
    for name in ("storm", "busy-loop"):
        assert lint(tmp_path, name, *ordered(*turns)).result == "none"


def test_masses_of_schedules_for_one_run_are_lost(tmp_path: Path) -> None:
    kept = {"name": "kept", "callback": 7, "bh": 0x700, "detail": {"enqueue": "coalesced"}}
    first = schedule(10, **(kept | {"detail": {"enqueue": "inserted"}}))
    more = [schedule(11 + number, **kept) for number in range(1_000)]
    end = run(5_000, name="kept", callback=7, bh=0x700)
    found = only(lint(tmp_path, "lost-schedule", first, *more, end))
    assert (found.name, found.value) == ("kept", 1_000)
    assert lint(tmp_path, "lost-schedule", first, *more[1:], end).result == "none"


def test_only_what_others_scheduled_can_be_lost_by_a_cancel(tmp_path: Path) -> None:
    def cancelled(by: int) -> list[Event]:
        kept = {"name": "kept", "callback": 7, "bh": 0x700}
        return [
            event
            for number in range(3)
            for event in (
                schedule(10 + 10 * number, tid=by, **kept),
                Event(15 + 10 * number, "cancel", PID, role="main", context="main", ctx=0x1000,
                      **kept),
            )
        ]  # fmt: skip

    found = only(lint(tmp_path, "lost-schedule", *cancelled(WORKER_TID), lost_schedule="3"))
    assert found.count == 3
    result = lint(tmp_path, "lost-schedule", *cancelled(PID), lost_schedule="3")
    assert result.result == "none"


def test_a_context_starves_while_its_thread_is_in_another_ones_callback(tmp_path: Path) -> None:
    blocker = ran(2 * MS, 180 * MS, "blocker")
    waits = in_iohandler(181 * MS, 182 * MS, "waits", before=180 * MS)
    found = only(lint(tmp_path, "starvation", *ordered(blocker, waits)))
    assert (found.context, found.value) == ("iohandler", 180 * MS)
    assert "blocker" in found.sentence
    assert lint(tmp_path, "head-of-line", *ordered(blocker, waits)).result == "none"
    lossy = ordered(blocker, waits, [lost(90 * MS, 91 * MS)])
    assert lint(tmp_path, "starvation", *lossy).result == "inconclusive"


def test_behind_one_of_its_own_context_it_is_head_of_line(tmp_path: Path) -> None:
    blocker = ran(2 * MS, 180 * MS, "blocker")
    waits = ran(181 * MS, 182 * MS, "waits", before=180 * MS)
    found = only(lint(tmp_path, "head-of-line", *ordered(blocker, waits)))
    assert (found.name, found.facts["behind"]) == ("waits", "blocker")
    assert lint(tmp_path, "starvation", *ordered(blocker, waits)).result == "none"


def test_a_late_reply_names_what_ran_before_it(tmp_path: Path) -> None:
    command = in_iohandler(1 * MS, 3 * MS, "do_qmp_dispatch_bh")
    culprit = ran(4 * MS, 150 * MS, "snapshot_save_job_bh")
    reply = in_iohandler(151 * MS, 152 * MS, "co_schedule_bh_cb", before=149 * MS)
    found = only(lint(tmp_path, "late-reply", *ordered(command, culprit, reply)))
    assert found.facts["behind"] == "snapshot_save_job_bh"
    assert found.value == 149 * MS
    other = in_iohandler(151 * MS, 152 * MS, "co_schedule_bh_cb", before=147 * MS)
    assert lint(tmp_path, "late-reply", *ordered(command, culprit, other)).result == "none"


def step(time_ns: int, name: str, what: str, **facts: Any) -> Event:
    return Event(time_ns, "qmp", PID, role="main", name=name, detail={"step": what, **facts})


QMP = {"qmp": ["STOP", "RESUME", "command", "begin", "end", "reply"], "returns": [NAME]}


def test_the_rows_of_qmp_name_the_command_whose_reply_was_late(tmp_path: Path) -> None:
    steps = [step(1 * MS, "snapshot-save", "end", number=7),
             step(152 * MS, "snapshot-save", "reply", number=7)]  # fmt: skip
    events = ordered(steps, ran(2 * MS, 151 * MS, NAME))
    path = write(tmp_path / "t.csv", [attach(**QMP), *events, detach()])
    found = only(open_traces(path).lint(["late-reply"])[0])
    assert (found.name, found.value, found.facts["behind"]) == ("snapshot-save", 151 * MS, NAME)
    assert set(found.evidence()["event"]) == {"qmp", "run"}
    (quick,) = open_traces(path).lint(["late-reply"], {"late-reply": "1s"})
    assert quick.result == "none"
    by_vcpu = ordered(steps, ran(2 * MS, 151 * MS, NAME, tid=VCPU_TID, role="vcpu"))
    path = write(tmp_path / "v.csv", [attach(**QMP), *by_vcpu, detach()])
    assert only(open_traces(path).lint(["late-reply"])[0]).facts["behind"] == NAME
    unknown = write(tmp_path / "u.csv", [attach(**QMP), *steps, detach()])
    assert open_traces(unknown).lint(["late-reply"])[0].result == "inconclusive"


@pytest.mark.parametrize(
    ("stop", "resume", "result"),
    [(2, 99, "none"), (97, 98, "finding"), (None, 98, "finding"), (2, None, "none")],
)
def test_a_save_must_stop_the_guest_while_it_lasts(
    tmp_path: Path, stop: int | None, resume: int | None, result: str
) -> None:
    sent = [
        step(time * MS, name, "event")
        for time, name in ((stop, "STOP"), (resume, "RESUME"))
        if time is not None
    ]
    events = ordered(ran(1 * MS, 100 * MS, NAME), sent)
    path = write(tmp_path / "t.csv", [attach(**QMP), *events, detach()])
    assert open_traces(path).lint(["vm-stop"])[0].result == result


def polls(count: int, first: int, gap: int) -> list[Event]:
    """Completions that a vCPU thread runs for its guest's device."""
    stack = (*VCPU_POLL[:-1], "thread_pool_completion_bh")
    own = {"tid": VCPU_TID, "role": "vcpu", "thread": "CPU 0/TCG", "stack": stack}
    return ordered(*(
        ran(first + gap * n, first + gap * n + 100, "thread_pool_completion_bh", before=500, **own)
        for n in range(count)
    ))  # fmt: skip


def test_guest_polls_have_the_path_from_the_device(tmp_path: Path) -> None:
    found = only(lint(tmp_path, "guest-polls", *polls(100, MS, MS)))
    assert found.value == 100
    assert found.facts["callers"] == {"blk_pwrite": 100}
    assert found.facts["paths"] == {"aio_poll <- blk_pwrite <- memory_region_dispatch_write": 100}
    assert lint(tmp_path, "guest-polls", *polls(99, MS, MS)).result == "none"


def test_the_race_is_open_when_main_runs_it_beside_polling_vcpus(tmp_path: Path) -> None:
    command = in_iohandler(1 * MS, 3 * MS, "do_qmp_dispatch_bh")
    job = ran(4 * MS, 5 * MS, NAME, before=2 * MS)
    apart = lint(tmp_path, "exposure", *ordered(command, job, polls(2_000, 10 * MS, MS)))
    found = only(apart)
    assert (found.facts["near_misses"], found.facts["crossed_ppoll"]) == (0, 1)
    assert found.facts["pending_ns"] == 2 * MS
    inside = polls(1, 3 * MS + 1_000, MS)
    assert only(lint(tmp_path, "exposure", *ordered(command, job, inside))).facts["near_misses"]
    assert lint(tmp_path, "exposure", *ordered(command, job)).result == "none"


def test_what_needs_every_bottom_half_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [attach(), schedule(10), run(20), detach()])
    results = open_traces(path).lint()
    needy = {lint.name for lint in choose(None) if lint.needs == "--all"} | {"late-reply"}
    unsure = {one.lint: one.reason for one in results if one.result == "inconclusive"}
    assert unsure.pop("long-command") == "it needs the rows of QMP commands"
    assert unsure.keys() == needy
    assert all("--all" in reason for reason in unsure.values())


def test_a_stuck_wait_needs_two_looks_at_the_same_place(tmp_path: Path) -> None:
    def look(time_ns: int, place: str) -> Event:
        return Event(
            time_ns, "blocked", PID, role="main", name=NAME, context="main", ctx=CTX,
            callback=CALLBACK, opaque=OPAQUE, bh=0x99, stack=(*NESTED[:-2], "ppoll"),
            detail={"pending_in": "iohandler", "waits_at": [place, "0x1"], "sentence": "s"},
        )  # fmt: skip

    events = [schedule(10), look(20, "0x5"), look(2_000 * MS, "0x5")]
    found = only(lint(tmp_path, "stuck-wait", *events))
    assert found.rows == (4, 5)
    assert "job_finish_sync_locked" in found.sentence
    assert lint(tmp_path, "stuck-wait", *events[:2], look(2_000 * MS, "0x6")).result == "none"
    assert lint(tmp_path, "stuck-wait", *events, stuck_wait="3s").result == "none"


def test_the_table_of_the_lints_is_what_they_say_of_themselves() -> None:
    text = lint_table.PAGE.read_text()
    assert lint_table.table() in text, "run python -m scripts.lint_table"
    for one in choose(None):
        for part in (one.name, one.sentence, one.evidence, one.source, one.why, one.needs):
            assert part in lint_table.table(), one.name
    sections = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert list(sections) == [name for name in LINTS if name in sections]
    assert all("```" in section for section in sections.values()), "each shows an output"


def command(time_ns: int, step: str, number: int = 1, **changes: Any) -> Event:
    detail = {"step": step, "number": number}
    columns = {"tid": PID, "role": "main", "thread": "qemu", "name": "stop", **changes}
    return Event(time_ns, "qmp", detail=detail, **columns)


STEPS = ["begin", "command", "end", "reply"]


def commanded(path: Path, *events: Event, **facts: Any) -> LintResult:
    trace = write(path / "t.csv", [attach(qmp=STEPS), *events, detach(9_000 * MS, **facts)])
    return open_traces(trace).lint(["long-command"])[0]


def test_a_command_that_keeps_main_is_named_with_what_was_gone(tmp_path: Path) -> None:
    begin, end = command(100 * MS, "begin"), command(6_060 * MS, "end")
    found = only(commanded(tmp_path, begin, end))
    assert (found.name, found.value, found.rows) == ("stop", 5_960 * MS, (3, 4))
    assert found.sentence.startswith("QMP stop ran 5.96 s on the main thread (tid 100)")
    # That the BQL was, looks have to show.
    assert found.sentence.endswith(": the main loop was gone")
    looks = [_stuck(time_ns * MS, PID) for time_ns in (1_000, 3_000)]
    found = only(commanded(tmp_path, begin, *looks, end))
    assert found.sentence.endswith(": the BQL and the main loop were gone")
    looks = [_stuck(1_000 * MS, PID), _stuck(3_000 * MS, VCPU_TID)]
    found = only(commanded(tmp_path, begin, *looks, end))
    assert found.sentence.endswith(": the main loop was gone")


def test_a_command_that_has_not_ended_is_as_long_as_that_is_certain(tmp_path: Path) -> None:
    found = only(commanded(tmp_path, command(100 * MS, "begin"), until_ns=5_100 * MS))
    assert (found.value, found.facts["ended"]) == (5_000 * MS, False)
    assert "ran 5 s or longer on" in found.sentence
    assert found.sentence.endswith("; it had not ended when the recording did")
    # Cut off: the end would have been among the rows before the last one.
    later = command(3_100 * MS, "command", 2)
    rows = [attach(qmp=STEPS), command(100 * MS, "begin"), later, run(9_000 * MS, tid=VCPU_TID)]
    (result,) = open_traces(write(tmp_path / "cut.csv", rows)).lint(["long-command"])
    assert only(result).value == 3_000 * MS


def test_commands_that_do_not_keep_the_loop_are_no_finding(tmp_path: Path) -> None:
    quick = [command(100 * MS, "begin"), command(150 * MS, "end")]
    # In its coroutine: it has neither begin nor end, however long its answer takes.
    slow = [command(200 * MS, "command", 2), command(5_000 * MS, "reply", 2)]
    assert commanded(tmp_path, *quick, *slow).result == "none"


def test_where_steps_were_lost_a_command_is_not_accused(tmp_path: Path) -> None:
    gone = Event(2_000 * MS, "lost", detail={"count": 1, "since_ns": 1_900 * MS, "probes": "qmp"})
    for rest in ([command(6_000 * MS, "end")], []):
        result = commanded(tmp_path, command(100 * MS, "begin"), gone, *rest, until_ns=8_000 * MS)
        assert (result.result, result.findings) == ("inconclusive", [])


def test_a_long_callback_names_the_command_in_it(tmp_path: Path) -> None:
    dispatch = ran(1 * MS, 951 * MS, "do_qmp_dispatch_bh", context="iohandler")
    steps = [
        command(2 * MS, "begin", name="blockdev-add"),
        command(950 * MS, "end", name="blockdev-add"),
    ]
    found = only(lint(tmp_path, "long-callback", *ordered(dispatch), *steps))
    assert found.facts["command"] == "blockdev-add"
    assert ": it ran QMP blockdev-add" in found.sentence


def _stuck(time_ns: int, bql: int) -> Event:
    detail = {"kind": "stuck", "bql": bql, "waits_at": ["0x1"], "cpu_ns": 1, "sentence": "s"}
    return Event(time_ns, "blocked", PID, "qemu", "main", stack=NESTED[:-2], detail=detail)
