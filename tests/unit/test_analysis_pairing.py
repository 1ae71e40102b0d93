"""Which run belongs to which schedule, checked against a plain model of the event loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import FINDINGS, classify, pair_instances
from qtrace.trace.reader import TraceFile
from qtrace.trace.schema import COLUMNS, POINTER_COLUMNS, Event
from tests.unit.event_rows import (
    CALLBACK,
    CTX,
    NAME,
    PID,
    attach,
    recording,
    run,
    run_on_vcpu,
    schedule,
)

PROPERTY = settings(max_examples=80)


def to_frame(events: list[Event]) -> pd.DataFrame:
    """As the reader gives it; rows are numbered by their place in the list."""
    frame = pd.DataFrame({c: [getattr(event, c) for event in events] for c in COLUMNS})
    frame["stack"] = frame["stack"].map(";".join)
    frame["detail"] = ""
    texts = ["event", "thread", "role", "name", "context", "stack", "detail"]
    types = dict.fromkeys(texts, "category") | dict.fromkeys(POINTER_COLUMNS, "uint64")
    frame = frame.astype(types | {"time_ns": "int64", "tid": "int64"})
    return frame.assign(row=range(len(frame)))


def pairs(instances: pd.DataFrame) -> set[tuple[int | None, int | None]]:
    """(schedule's row, end's row), None for what is not there."""
    rows = instances[["scheduled_row", "ended_row"]].astype(object)
    rows = rows.where(rows.notna(), None)
    return {(begin, end) for begin, end in rows.to_numpy().tolist()}


def paired(events: list[Event]) -> set[tuple[int | None, int | None]]:
    return pairs(pair_instances(to_frame(events)))


def test_memory_that_is_reused_at_once_is_another_instance() -> None:
    assert paired([schedule(1), run(2), schedule(3), run(4)]) == {(0, 1), (2, 3)}


def test_the_youngest_of_equal_one_shots_runs_first() -> None:
    assert paired([schedule(1), schedule(2), run(3), run(4)]) == {(1, 2), (0, 3)}


def test_a_run_without_a_schedule_was_scheduled_before() -> None:
    assert paired([run(1), schedule(2), run(3)]) == {(None, 0), (1, 2)}


@pytest.mark.parametrize("other", [{"opaque": 7}, {"ctx": 7}, {"callback": 7}])
def test_another_argument_context_or_callback_is_no_pair(other: dict[str, int]) -> None:
    assert paired([schedule(1), run(2, **other)]) == {(0, None), (None, 1)}


def test_a_run_whose_context_is_not_known_pairs_without_it() -> None:
    events = [schedule(1), schedule(2, opaque=7), run(3, ctx=0, context="")]
    instances = pair_instances(to_frame(events))
    assert pairs(instances) == {(0, 2), (1, None)}
    first = instances.iloc[0]
    assert (first["ctx"], first["context"]) == (CTX, "main")


def test_a_persistent_bottom_half_is_pending_once() -> None:
    events = [schedule(t, bh=5) for t in (1, 2, 3)] + [run(4, bh=5), schedule(5, bh=5)]
    instances = pair_instances(to_frame(events))
    assert pairs(instances) == {(0, 3), (4, None)}
    assert list(instances["coalesced"]) == [2, 0]


def test_a_cancelled_or_deleted_one_ends_and_may_be_scheduled_again() -> None:
    cancel, delete = Event(2, "cancel", bh=5), Event(4, "delete", bh=5)
    same: dict[str, Any] = {"bh": 5, "callback": 0, "ctx": 0, "opaque": 0}
    events = [schedule(1, **same), cancel, schedule(3, **same), delete, Event(5, "cancel", bh=5)]
    events = [Event(**{c: getattr(e, c) for c in COLUMNS} | {"name": NAME}) for e in events]
    assert paired(events) == {(0, 1), (2, 3)}


def test_facts_come_from_the_right_side() -> None:
    instances = pair_instances(to_frame([schedule(10, thread="main"), run_on_vcpu(25)]))
    row = instances.iloc[0]
    assert (row["scheduled_by_tid"], row["scheduled_by_thread"]) == (PID, "main")
    assert (row["role"], row["end"], row["wait_ns"]) == ("vcpu", "run", 15)
    assert row["callback"] == CALLBACK


def test_no_events_give_no_instances() -> None:
    assert pair_instances(to_frame([attach()])).empty


KEYS = st.tuples(st.sampled_from([1, 2]), st.sampled_from([0, 3, 4]), st.sampled_from([0, 5]))


@st.composite
def any_order(draw: st.DrawFn) -> list[Event]:
    """Events in any order, possible or not."""
    events = []
    for time in range(draw(st.integers(0, 30))):
        kind: Any = draw(st.sampled_from(["schedule", "run", "run", "cancel", "delete", "lost"]))
        callback, ctx, opaque = draw(KEYS)
        bh = draw(st.sampled_from([0, 7, 8])) if kind in ("schedule", "run") else 7
        event = Event(time, kind, name="f", callback=callback, ctx=ctx, opaque=opaque, bh=bh)
        events.append(event)
    return events


def model(events: list[Event]) -> set[tuple[int | None, int | None]]:
    """The same by walking through the rows with a stack of pending schedules per key."""
    kinds = ("schedule", "run", "cancel", "delete")
    handled = {(e.bh, e.callback) for e in events if e.bh and e.event in kinds and e.event != "run"}
    oneshots = [e for e in events if e.event in kinds and (e.bh, e.callback) not in handled]
    blind = {(e.callback, e.opaque) for e in oneshots if not e.ctx}
    pending: dict[Any, list[int]] = {}
    found: set[tuple[int | None, int | None]] = set()
    for row, event in enumerate(events):
        if event.event not in kinds:
            continue
        persistent = (event.bh, event.callback) in handled
        known = event.ctx if (event.callback, event.opaque) not in blind else 0
        key = (
            ("bh", event.bh, event.callback)
            if persistent
            else ("oneshot", event.callback, event.opaque, known)
        )
        stack = pending.setdefault(key, [])
        if event.event == "schedule":
            if not (persistent and stack):
                stack.append(row)
        elif stack:
            found.add((stack.pop(), row))
        elif event.event == "run":
            found.add((None, row))
    return found | {(row, None) for stack in pending.values() for row in stack}


@PROPERTY
@given(any_order())
def test_any_order_of_events_pairs_as_in_the_model(events: list[Event]) -> None:
    assert paired(events) == model(events)


@st.composite
def event_loop(draw: st.DrawFn) -> tuple[list[Event], list[tuple[int, int | None]]]:
    """A run of the loop: one-shots are scheduled, each poll drains its slice newest first.

    Returns the events and the true pairs. Addresses are few, so they are reused all the time.
    """
    events: list[Event] = []
    waiting: list[tuple[int, int]] = []
    truth = []
    for poll in draw(st.lists(st.booleans(), min_size=1, max_size=40)):
        if not poll:
            opaque = draw(st.sampled_from([1, 2, 3]))
            waiting.append((len(events), opaque))
            events.append(schedule(10 * len(events) + 10, opaque=opaque))
            continue
        runner = draw(st.sampled_from([run, run, run_on_vcpu]))
        while waiting:
            born, opaque = waiting.pop()
            truth.append((born, len(events)))
            events.append(runner(10 * len(events) + 10, opaque=opaque))
    return events, truth + [(born, None) for born, _ in waiting]


@PROPERTY
@given(event_loop(), st.data())
def test_what_the_loop_did_is_found_from_any_moment_on(
    life: tuple[list[Event], list[tuple[int, int | None]]], data: st.DataObject
) -> None:
    events, truth = life
    start = data.draw(st.integers(0, len(events)))
    frame = to_frame(events).iloc[start:]
    expected = {
        (born if born >= start else None, end)
        for born, end in truth
        if born >= start or (end is not None and end >= start)
    }
    assert pairs(pair_instances(frame)) == expected


@PROPERTY
@given(event_loop(), st.data())
def test_nothing_is_judged_from_incomplete_data(
    life: tuple[list[Event], list[tuple[int, int | None]]], data: st.DataObject
) -> None:
    events, truth = life
    drawn = data.draw(st.sets(st.integers(0, 60)))
    lost_rows = {row for row in drawn if row < len(events)}
    frame = to_frame(events)
    kept = frame[~frame["row"].isin(lost_rows)]
    times = [events[row].time_ns for row in sorted(lost_rows)]
    # The recorder knows only that they were lost between two looks.
    spans = [{"since_ns": t - t % 40, "until_ns": t - t % 40 + 40, "count": 1} for t in times]
    losses = pd.DataFrame(spans, columns=["since_ns", "until_ns", "count"], dtype="int64")
    trace = TraceFile(
        path=Path("x"), frame=kept, header={"target": {"pid": PID}}, losses=losses,
        step_losses=losses[:0],
        qmp_losses=losses[:0],
        lost_events=len(times), exit=None, detach={}, warnings=[], complete=True,
    )  # fmt: skip
    judged = classify(pair_instances(kept), trace)
    certain = judged[judged["verdict"] != "inconclusive"]
    assert pairs(certain) <= set(truth)
    assert {row for _, row in pairs(certain[certain["verdict"].isin(FINDINGS)])} <= {
        row for row, event in enumerate(events) if event.role == "vcpu"
    }


def test_pairs_are_made_inside_each_trace(tmp_path: Path) -> None:
    first = recording(tmp_path / "a.csv", schedule(10))
    second = recording(tmp_path / "b.csv", run(20))
    assert pairs(pair_instances(first.frame)) == {(3, None)}
    assert pairs(pair_instances(second.frame)) == {(None, 3)}
