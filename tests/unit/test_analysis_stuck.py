"""`stuck` from two looks that show the same wait of a loop's thread, and from nothing less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import Trace, exit_status, judge
from qtrace.errors import ExitStatus
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import Event
from tests.unit.event_rows import (
    CALLBACK,
    CTX,
    IOTHREAD_TID,
    NAME,
    OPAQUE,
    PID,
    ROOT,
    attach,
    detach,
    lost,
    schedule,
    write,
)

SECOND, MS = 10**9, 10**6
LIMIT_NS = 2 * SECOND
WAIT = (*ROOT, "do_qmp_dispatch_bh+0x9", "qmp_query_block+0x80", "fstatat+0x1")
POLL = (*ROOT, "bdrv_drain_all_begin+0x9", "aio_poll+0x124", "ppoll")
SENTENCE = "the main loop does not run: 100 (main), in QMP query-block, waits in fstatat"


def look(time_ns: int, **changes: Any) -> Event:
    facts = {
        "kind": "stuck",
        "waits_in": ["fstatat", "qmp_query_block"],
        "command": "QMP query-block",
        "waits_at": ["0x7ffd0000", "0x7f0000"],
        "cpu_ns": 5,
        "turns": 3,
        "behind": [],
        "bql": PID,
        "since_ns": 3 * SECOND,
        "sentence": SENTENCE,
    }
    facts |= changes.pop("facts", {})
    columns: dict[str, Any] = {
        "tid": PID, "role": "main", "thread": "qemu", "stack": WAIT, **changes,
    }  # fmt: skip
    return Event(time_ns, "blocked", detail=facts, **columns)


def polls(time_ns: int, **changes: Any) -> Event:
    return look(time_ns, stack=POLL, context="main", ctx=CTX, **changes)


def back(time_ns: int, blocked_ns: int = 5 * SECOND, came_back: bool = True) -> Event:
    detail = {"blocked_ns": blocked_ns, "came_back": came_back}
    return Event(time_ns, "unblocked", PID, "qemu", "main", detail=detail)


def held(time_ns: int, since_ns: int) -> Event:
    detail = {"why": "stopped by SIGSTOP", "since_ns": since_ns}
    return Event(time_ns, "held", detail=detail)


def released(time_ns: int, held_ns: int) -> Event:
    return Event(time_ns, "released", detail={"held_ns": held_ns})


def judged(path: Path, *events: Event, cut: bool = False) -> dict[str, Any]:
    rows = [attach(stall_after_ns=LIMIT_NS), *events, *([] if cut else [detach(60 * SECOND)])]
    return judge(read_trace(write(path / "t.csv", rows)))


FIRST, LAST = look(4 * SECOND), look(9 * SECOND)


def test_two_looks_at_the_same_wait_prove_it(tmp_path: Path) -> None:
    report = judged(tmp_path, FIRST, LAST)
    assert (report["verdict"], exit_status(report)) == ("stuck", ExitStatus.FINDING)
    (stuck,) = report["stuck"]
    assert (stuck["tid"], stuck["role"], stuck["command"]) == (PID, "main", "QMP query-block")
    assert stuck["sentence"] == SENTENCE
    assert stuck["waits"] == ["fstatat", "qmp_query_block"]
    assert (stuck["first_ns"], stuck["last_ns"]) == (4 * SECOND, 9 * SECOND)
    assert stuck["at_least_ns"] == 6 * SECOND
    assert (stuck["over_ns"], stuck["came_back"], stuck["polls"]) == (None, False, None)
    assert stuck["evidence"]["rows"] == [3, 4]
    assert stuck["stack"][0] == "fstatat"
    # No bottom half without a name.
    assert [half["name"] for half in report["bottom_halves"]] == [NAME]


def test_the_end_of_work_that_turned_into_a_wait_does_not_end_the_wait(tmp_path: Path) -> None:
    """What a look shows of the wait is the last of the work, and both rows bear its time."""
    work = [
        look(2 * SECOND, facts={"kind": "computes"}), look(3 * SECOND, facts={"kind": "computes"})
    ]  # fmt: skip
    report = judged(tmp_path, *work, back(4 * SECOND, came_back=False), FIRST, LAST)
    assert report["verdict"] == "stuck"
    assert [one["first_ns"] for one in report["stuck"]] == [4 * SECOND]
    assert [one["over_ns"] for one in report["computing"]] == [4 * SECOND]


@pytest.mark.parametrize(
    "looks",
    [
        [FIRST],
        [FIRST, look(4 * SECOND + 1000)],
        [FIRST, look(9 * SECOND, stack=(*ROOT, "open+0x1"))],
        [FIRST, look(9 * SECOND, facts={"waits_at": ["0x1", "0x2"]})],
        [FIRST, look(9 * SECOND, facts={"cpu_ns": 6})],
        [FIRST, look(9 * SECOND, facts={"turns": 4})],
        [FIRST, look(9 * SECOND, tid=IOTHREAD_TID)],
        [look(4 * SECOND, facts={"cpu_ns": 0}), look(9 * SECOND, facts={"cpu_ns": 0})],
        [FIRST, look(4 * SECOND + 500 * MS, facts={"behind": [[7, 6]]})],
        [polls(4 * SECOND), polls(5 * SECOND, facts={"cpu_ns": 6})],
        [look(4 * SECOND, stack=()), look(9 * SECOND, stack=())],
    ],
    ids=[
        "one look", "no time between", "another wait", "another place", "it ran in between",
        "it was given a processor", "another thread", "it may have run", "whom it waits for moved",
        "a poll that wakes up", "no stack",
    ],
)  # fmt: skip
def test_anything_less_proves_nothing_and_clears_nothing(
    tmp_path: Path, looks: list[Event]
) -> None:
    report = judged(tmp_path, *looks)
    assert report["stuck"] == []
    assert (report["verdict"], exit_status(report)) == ("inconclusive", ExitStatus.INCONCLUSIVE)
    assert SENTENCE in report["notes"][0]


@pytest.mark.parametrize(
    "looks",
    [
        [FIRST, look(6 * SECOND, facts={"behind": [[7, 6]]})],
        [polls(4 * SECOND), polls(6 * SECOND, facts={"cpu_ns": 6})],
    ],
    ids=["behind somebody who moves", "a poll that wakes up"],
)
def test_where_somebody_moves_two_seconds_prove_it(tmp_path: Path, looks: list[Event]) -> None:
    assert judged(tmp_path, *looks)["verdict"] == "stuck"


def test_what_came_back_was_stuck_all_the_same(tmp_path: Path) -> None:
    report = judged(tmp_path, FIRST, LAST, back(10 * SECOND, 6_500 * MS))
    assert exit_status(report) == ExitStatus.FINDING
    (stuck,) = report["stuck"]
    assert (stuck["at_least_ns"], stuck["over_ns"]) == (6_500 * MS, 10 * SECOND)
    assert stuck["came_back"]
    assert stuck["evidence"]["rows"] == [3, 4, 5]


def test_what_was_over_before_the_limit_is_none(tmp_path: Path) -> None:
    """At the beginning of a recording half a second is told; it may be over soon after."""
    soon = [look(3_500 * MS), back(4 * SECOND, 900 * MS)]
    report = judged(tmp_path, look(3 * SECOND), *soon)
    assert (report["verdict"], exit_status(report)) == ("not-seen", ExitStatus.OK)
    assert report["stuck"] == report["notes"] == []


def test_one_look_at_what_was_over_soon_leaves_nothing_open(tmp_path: Path) -> None:
    report = judged(tmp_path, FIRST, back(5 * SECOND, 0, came_back=False))
    assert (report["verdict"], report["notes"]) == ("not-seen", [])


def test_two_hangs_of_one_thread_are_two(tmp_path: Path) -> None:
    again = [look(20 * SECOND, facts={"since_ns": 19 * SECOND}), look(30 * SECOND)]
    report = judged(tmp_path, FIRST, LAST, back(10 * SECOND), *again)
    first, second = report["stuck"]
    assert (first["over_ns"], second["over_ns"]) == (10 * SECOND, None)
    assert second["at_least_ns"] == 11 * SECOND


def test_losses_and_a_cut_take_no_look_away(tmp_path: Path) -> None:
    assert judged(tmp_path, FIRST, lost(5 * SECOND, 6 * SECOND), LAST)["verdict"] == "stuck"
    assert judged(tmp_path, FIRST, LAST, cut=True)["verdict"] == "stuck"


def test_nothing_is_not_seen_in_what_was_cut_off(tmp_path: Path) -> None:
    report = judged(tmp_path, cut=True)
    assert (report["verdict"], exit_status(report)) == ("inconclusive", ExitStatus.INCONCLUSIVE)


def test_of_a_stranded_bottom_half_that_is_needed_the_thread_is_no_second_finding(
    tmp_path: Path,
) -> None:
    """main waits for a job, whose next step is pending: that is the cause."""

    def pending(time_ns: int, **facts: Any) -> Event:
        more = {"pending_in": "main", "pending_ctx": f"{CTX:#x}", **facts}
        return look(
            time_ns, name=NAME, bh=0x77, callback=CALLBACK, opaque=OPAQUE, facts=more
        )  # fmt: skip

    def thread(time_ns: int) -> Event:
        return look(time_ns, facts={"kind": "stranded"})

    looks = [thread(4 * SECOND), pending(4 * SECOND), thread(9 * SECOND)]
    report = judged(tmp_path, schedule(SECOND), *looks, pending(9 * SECOND, end=True))
    assert (report["verdict"], report["stuck"], report["notes"]) == ("stranded", [], [])
    # What ran in the end is not stranded; that the loop was away is told.
    report = judged(tmp_path, *looks[::2], back(10 * SECOND))
    assert report["verdict"] == "stuck"


@pytest.mark.parametrize("kind", ["computes", "unclear"])
def test_who_computes_to_the_end_is_neither_stuck_nor_clear(tmp_path: Path, kind: str) -> None:
    looks = [look(4 * SECOND, facts={"kind": kind}), look(9 * SECOND, facts={"kind": kind})]
    report = judged(tmp_path, *looks)
    assert (report["verdict"], report["stuck"]) == ("inconclusive", [])
    assert report["notes"] == [SENTENCE]
    assert len(report["computing"]) == (kind == "computes")
    report = judged(tmp_path, *looks, back(10 * SECOND))
    assert (report["verdict"], report["notes"]) == ("not-seen", [])
    assert len(report["computing"]) == (kind == "computes")


def test_who_computed_is_told_with_the_whole_time_and_not_that_of_its_last_row(
    tmp_path: Path,
) -> None:
    said = "the main loop does not run: 100 (main) computes in pbkdf2, for at least 0.9 s"
    row = look(4 * SECOND, facts={"kind": "computes", "sentence": said})
    (one,) = judged(tmp_path, row, back(8 * SECOND))["computing"]
    assert one["at_least_ns"] == 5 * SECOND
    assert one["sentence"] == said.replace("0.9 s", "5 s")


def test_nothing_is_not_seen_of_a_target_that_was_held(tmp_path: Path) -> None:
    report = judged(tmp_path, held(5 * SECOND, 4 * SECOND), held(9 * SECOND, 4 * SECOND))
    assert (report["verdict"], exit_status(report)) == ("inconclusive", ExitStatus.INCONCLUSIVE)
    (one,) = report["held"]
    assert (one["at_least_ns"], one["released_ns"]) == (5 * SECOND, None)
    assert one["sentence"] == "the target was stopped by SIGSTOP for 5 s at least"
    assert "stopped by SIGSTOP" in report["bottom_halves"][0]["notes"][0]
    report = judged(tmp_path, held(5 * SECOND, 4 * SECOND), released(7 * SECOND, 2_900 * MS))
    (one,) = report["held"]
    assert (one["at_least_ns"], one["released_ns"]) == (2_900 * MS, 7 * SECOND)
    assert report["verdict"] == "inconclusive"


def test_a_recording_of_before_there_were_such_rows_is_judged_as_ever(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [attach(), detach()])
    report = judge(read_trace(path))
    assert (report["verdict"], exit_status(report)) == ("not-seen", ExitStatus.OK)
    assert report["stuck"] == report["held"] == report["notes"] == []


def test_saves_that_came_another_way_are_told(tmp_path: Path) -> None:
    call = Event(5, "call", PID, "qemu", "main", "save_snapshot", stack=(*ROOT, "hmp_savevm"))
    report = judged(tmp_path, call, call)
    assert report["verdict"] == "not-seen"
    (note,) = report["bottom_halves"][0]["notes"]
    assert note == "save_snapshot() was called 2 times, but not by this job: as by HMP"


@pytest.mark.parametrize(
    "facts", [{"since_ns": "x"}, {"waits_in": 7}, {"bql": "x"}, {"behind": {}}, {"kind": 3}]
)
def test_damaged_facts_prove_no_more_than_is_there(tmp_path: Path, facts: dict[str, Any]) -> None:
    report = judged(tmp_path, look(4 * SECOND, facts=facts), look(9 * SECOND, facts=facts))
    assert report["verdict"] in ("stuck", "inconclusive")
    assert (report["verdict"] == "stuck") == ("kind" not in facts)


LOOKS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from("ab"), st.integers(1, 2), st.booleans()),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(deadline=None)
@given(LOOKS)
def test_it_is_stuck_exactly_while_it_was_in_one_place_and_did_not_run(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int, bool]]
) -> None:
    """Against looking at each pair of rows by itself."""
    path, now = tmp_path_factory.mktemp("stuck"), 0
    rows, seen = [attach()], list[tuple[int, tuple[str, int, int]]]()
    rounds = 0
    for after, place, cpu, over in steps:
        now += after * 50 * MS
        facts = {"waits_at": [place], "cpu_ns": cpu, "since_ns": now}
        rows.append(look(now, facts=facts))
        seen.append((now, (place, cpu, rounds)))
        if over:
            rows.append(back(now + 1, 0, came_back=False))
        rounds += over
    # In between it was elsewhere: the same place again is another wait.
    runs: list[list[int]] = []
    for number, (time_ns, key) in enumerate(seen):
        if not number or seen[number - 1][1] != key:
            runs.append([])
        runs[-1].append(time_ns)
    expected = [run[-1] - run[0] for run in runs if run[-1] - run[0] >= 100 * MS]
    trace = read_trace(write(path / "t.csv", [*rows, detach(60 * SECOND)]))
    proven = [one for one in Trace(trace).away if one.proven]
    assert [one.last_ns - one.first_ns for one in proven] == expected
