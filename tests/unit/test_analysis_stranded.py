"""`stranded` from two looks that show the same wait, and from nothing less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import exit_status, judge
from qtrace.errors import ExitStatus
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import Event
from tests.unit.event_rows import (
    CALLBACK,
    CTX,
    NAME,
    OPAQUE,
    PID,
    ROOT,
    attach,
    detach,
    lost,
    recording,
    run,
    schedule,
    write,
)

SECOND = 10**9
BH = 0x77
WAIT = (*ROOT, "job_cancel_sync_all+0x9", "job_finish_sync_locked+0x80", "aio_poll+0x124", "ppoll")
SENTENCE = f"{NAME} is stranded in `main`"


def blocked(time_ns: int, *, end: bool = False, **changes: Any) -> Event:
    facts = {
        "pending_in": "main",
        "pending_ctx": f"{CTX:#x}",
        "blocked_in": "ppoll",
        "waits_at": ["0x7ffd0000", "0x7f0000"],
        "cpu_ns": 5,
        "behind": [[7, 5]],
        "sentence": SENTENCE,
    }
    facts |= changes.pop("facts", {})
    columns: dict[str, Any] = {
        "tid": PID, "role": "main", "thread": "qemu-system-x86", "name": NAME, "bh": BH,
        "context": "iothread:other", "ctx": 0x3000, "callback": CALLBACK, "opaque": OPAQUE,
        "stack": WAIT, **changes,
    }  # fmt: skip
    return Event(time_ns, "blocked", detail=facts | ({"end": True} if end else {}), **columns)


def judged(path: Path, *events: Event) -> dict[str, Any]:

    rows = [attach(), *events, detach(20 * SECOND)]
    return judge(read_trace(write(path / "t.csv", rows)))


FIRST, LAST = blocked(3 * SECOND), blocked(9 * SECOND, end=True)


def test_two_looks_at_the_same_wait_prove_it(tmp_path: Path) -> None:
    report = judged(tmp_path, schedule(SECOND), FIRST, LAST)
    (half,) = report["bottom_halves"]
    assert half["verdicts"] == {"stranded": 1}
    (finding,) = half["findings"]
    assert (finding["tid"], finding["role"], finding["polls"]) == (PID, "main", "iothread:other")
    assert finding["context"] == "main"
    assert finding["sentence"] == SENTENCE
    assert finding["stack"][finding["deciding_frame"]] == "aio_poll"
    assert finding["evidence"]["rows"] == [3, 4, 5]
    assert finding["time_ns"] == 9 * SECOND
    assert exit_status(report) == ExitStatus.FINDING


@pytest.mark.parametrize(
    "looks",
    [
        [FIRST],
        [LAST],
        [FIRST, blocked(9 * SECOND)],
        [FIRST, blocked(9 * SECOND, end=True, stack=(*ROOT, "bdrv_drain+0x1", "aio_poll+0x124"))],
        [FIRST, blocked(9 * SECOND, end=True, tid=PID + 1)],
        [FIRST, blocked(9 * SECOND, end=True, bh=BH + 8)],
        [FIRST, blocked(9 * SECOND, end=True, opaque=OPAQUE + 8)],
        [FIRST, blocked(9 * SECOND, end=True, facts={"waits_at": ["0x1", "0x2"]})],
        [FIRST, blocked(9 * SECOND, end=True, facts={"behind": [[7, 6]]})],
        [FIRST, blocked(3 * SECOND + 1000, end=True)],
        [
            blocked(3 * SECOND, context="", ctx=0),
            blocked(9 * SECOND, end=True, context="", ctx=0, facts={"cpu_ns": 6}),
        ],
        [
            blocked(3 * SECOND, context="", ctx=0, facts={"cpu_ns": 0}),
            blocked(9 * SECOND, end=True, context="", ctx=0, facts={"cpu_ns": 0}),
        ],
        [],
    ],
    ids=[
        "one look", "only the last", "not at the end", "another wait", "another thread",
        "another bottom half", "another argument", "another place", "who it waits for ran",
        "no time between", "it ran in between", "it may have run in between", "none",
    ],
)  # fmt: skip
def test_anything_less_is_pending(tmp_path: Path, looks: list[Event]) -> None:
    report = judged(tmp_path, schedule(SECOND), *looks)
    (half,) = report["bottom_halves"]
    assert half["verdicts"] == {"pending": 1}
    assert exit_status(report) == ExitStatus.OK


def test_a_thread_that_waits_without_polling_and_never_ran_proves_it(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"context": "", "ctx": 0, "stack": (*ROOT, "pause_all_vcpus+0x1")}
    looks = [blocked(3 * SECOND, **changes), blocked(9 * SECOND, end=True, **changes)]
    report = judged(tmp_path, schedule(SECOND), *looks)
    (finding,) = report["bottom_halves"][0]["findings"]
    assert finding["verdict"] == "stranded"
    assert finding["polls"] is None


def test_what_was_blocked_and_ran_later_is_not_stranded(tmp_path: Path) -> None:
    report = judged(tmp_path, schedule(SECOND), FIRST, run(8 * SECOND))
    assert report["bottom_halves"][0]["verdicts"] == {"main-loop": 1}


def test_of_two_that_are_alike_only_the_one_behind_the_proof_is_stranded(tmp_path: Path) -> None:
    report = judged(tmp_path, schedule(SECOND), schedule(SECOND + 5), FIRST, LAST)
    assert report["bottom_halves"][0]["verdicts"] == {"stranded": 1, "inconclusive": 1}


def test_losses_in_its_life_leave_it_inconclusive(tmp_path: Path) -> None:
    report = judged(tmp_path, schedule(SECOND), FIRST, lost(4 * SECOND, 5 * SECOND), LAST)
    assert report["bottom_halves"][0]["verdicts"] == {"inconclusive": 1}


def test_a_trace_that_was_cut_off_leaves_it_inconclusive(tmp_path: Path) -> None:
    report = judge(write(tmp_path / "t.csv", [attach(), schedule(SECOND), FIRST, LAST]))
    assert report["verdict"] == "inconclusive"


def test_what_was_pending_before_the_recording_has_no_scheduler(tmp_path: Path) -> None:
    already = Event(
        SECOND, "schedule", name=NAME, context="main", ctx=CTX, callback=CALLBACK, opaque=OPAQUE,
        detail={"pending_already": True},
    )  # fmt: skip
    report = judged(tmp_path, already, FIRST, LAST)
    (finding,) = report["bottom_halves"][0]["findings"]
    assert finding["verdict"] == "stranded"
    assert finding["scheduled_by_tid"] is None
    assert finding["scheduled_stack"] == []


def test_an_unwatched_one_is_judged_where_a_recorder_wrote_its_proof(tmp_path: Path) -> None:
    other: dict[str, Any] = {"name": "co_schedule_bh_cb", "callback": 0x9000}
    report = judged(
        tmp_path,
        schedule(SECOND, **other),
        blocked(3 * SECOND, **other),
        blocked(9 * SECOND, end=True, **other),
    )
    assert report["verdict"] == "stranded"
    assert [half["name"] for half in report["bottom_halves"]] == [NAME, "co_schedule_bh_cb"]


def test_a_damaged_detail_proves_nothing(tmp_path: Path) -> None:
    broken = blocked(9 * SECOND, end=True, facts={"pending_ctx": "nonsense"})
    trace = recording(tmp_path / "t.csv", schedule(SECOND), FIRST, broken)
    assert judge(trace)["verdict"] == "pending"


def test_what_all_saw_scheduled_and_a_look_found_pending_is_one(tmp_path: Path) -> None:
    """Real recordings of --all had it twice: once pending, with who scheduled it, once stranded."""
    already = Event(
        2 * SECOND, "schedule", name=NAME, context="main", ctx=CTX, callback=CALLBACK,
        opaque=OPAQUE, detail={"pending_already": True, "bh": f"{BH:#x}"},
    )  # fmt: skip
    report = judged(tmp_path, schedule(SECOND, bh=BH), already, FIRST, LAST)
    (half,) = report["bottom_halves"]
    assert half["verdicts"] == {"stranded": 1}
    assert half["findings"][0]["scheduled_by_tid"] == PID
    # An older recording has the pointer in the looks only.
    older = replace(already, detail={"pending_already": True})
    report = judged(tmp_path, schedule(SECOND, bh=BH), older, FIRST, LAST)
    assert report["bottom_halves"][0]["verdicts"] == {"stranded": 1}
    # Of what had run meanwhile the memory was used again: another one.
    ran = run(SECOND + 9, bh=BH)
    report = judged(tmp_path, schedule(SECOND, bh=BH), ran, already, FIRST, LAST)
    assert report["bottom_halves"][0]["verdicts"] == {"main-loop": 1, "stranded": 1}
    report = judged(tmp_path, schedule(SECOND, bh=BH + 8), already, FIRST, LAST)
    assert report["bottom_halves"][0]["scheduled"] == 2
