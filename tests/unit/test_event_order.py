"""Notes of two threads that crossed: what the flags tell of the order in which things happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qtrace.analysis import event_order, pair_instances
from qtrace.trace.schema import Event
from tests.unit.qemu_model import CONTEXTS, IOTHREAD, MAIN, VCPU, WORKER, Qemu
from tests.unit.test_analysis_model import PROPERTY, framed, sessions
from tests.unit.test_analysis_pairing import pairs

ENQUEUES = {"i": "inserted", "q": "requeued", "c": "coalesced"}


def noted(text: str) -> pd.DataFrame:
    """Events of one bottom half from ``THREAD:what``: M is the main thread, others are workers;
    i, q and c are schedules, r a run, x a cancel."""
    events = []
    for place, word in enumerate(text.split()):
        thread, what = word.split(":")
        tid = MAIN if thread == "M" else WORKER + ord(thread)
        kind: Any = {"r": "run", "x": "cancel"}.get(what, "schedule")
        detail = {"enqueue": ENQUEUES[what]} if what in ENQUEUES else {}
        events.append(Event(10 * place, kind, tid, name="a_bh", callback=1, bh=4, detail=detail))
    return framed(events)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # Orders of a real qemu-nbd. A worker found it cancelled, and was preempted before its note.
        ("M:i M:x M:r a:q M:i a:c M:x", {(0, 1), (3, 2), (4, 6)}),
        ("M:i M:x M:r M:i a:q a:c M:x", {(0, 1), (4, 2), (3, 6)}),
        ("M:i M:x M:r M:i M:x a:i b:q b:c M:r", {(0, 1), (5, 2), (3, 4), (6, 8)}),
        # One late note explains as much as two would, and is taken: b's.
        ("M:i M:x M:r M:i M:x a:i a:c M:r M:i b:q M:x M:q M:x",
         {(0, 1), (9, 2), (3, 4), (5, 7), (8, 10), (11, 12)}),
        # A run that was noted behind what was scheduled after it.
        ("a:i b:i M:r M:r", {(0, 2), (1, 3)}),
        ("a:i a:c a:i M:r M:c M:x", {(0, 3), (2, 5)}),
        # The last one stands open in the recording's end, and does so in any order.
        ("a:i M:r a:i", {(0, 1), (2, None)}),
    ],
)  # fmt: skip
def test_the_order_that_the_flags_allow_is_taken(
    events: str, expected: set[tuple[int | None, int | None]]
) -> None:
    instances = pair_instances(noted(events))
    assert pairs(instances) == expected
    assert "unseen" not in set(instances["end"])
    assert (instances["wait_ns"].dropna() >= 0).all()


def test_no_order_is_searched_for_where_one_thread_noted_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While probes come and go, a busy IOThread runs ten thousands without their schedules."""

    def searched(*_arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(event_order, "_search", searched)
    instances = pair_instances(noted("M:r M:r M:i M:r M:x M:r"))
    assert pairs(instances) == {(None, 0), (None, 1), (2, 3), (None, 5)}


@pytest.mark.parametrize(
    "events",
    [
        # A cancel that no probe saw: all later runs would have to be noted late.
        "a:i b:i M:r b:i M:r b:i M:r",
        "a:i b:q M:r b:i M:r",
        # One thread's own events are in order.
        "M:i M:i M:r M:r",
    ],
)
def test_what_no_order_explains_stays_open(events: str) -> None:
    assert "unseen" in set(pair_instances(noted(events))["end"])


def test_where_events_were_lost_nothing_is_put_in_order() -> None:
    frame = noted("a:i b:i M:r M:r M:i M:r")
    lost = pd.DataFrame({"since_ns": [11], "until_ns": [12], "count": [1]})
    assert "unseen" in set(pair_instances(frame, lost)["end"])
    before = lost.assign(since_ns=-5, until_ns=-1)
    assert "unseen" in set(pair_instances(frame, before)["end"])
    after = lost.assign(since_ns=45, until_ns=46)
    assert "unseen" not in set(pair_instances(frame, after)["end"])


def drained(qemu: Qemu) -> Qemu:
    """Until everything has come to an end."""
    for tid in (MAIN, VCPU, IOTHREAD, WORKER, WORKER + 1):
        while qemu.stacks.get(tid):
            qemu.step(tid)
    for context in CONTEXTS:
        qemu.poll(MAIN, context, nested=False)
        while qemu.stacks[MAIN]:
            qemu.step(MAIN)
    return qemu


def late(events: list[Event], place: int, by: int) -> list[Event]:
    """The event noted behind so many of other threads."""
    moved = events[place]
    behind = [n for n in range(place + 1, len(events)) if events[n].tid == moved.tid]
    to = min([place + by, len(events) - 1, *(n - 1 for n in behind[:1])])
    order = [*events[:place], *events[place + 1 : to + 1], moved, *events[to + 1 :]]
    return [replace(event, time_ns=10 * n + 10) for n, event in enumerate(order)]


@PROPERTY
@given(sessions(), st.data())
def test_a_note_that_comes_late_changes_nothing_that_ran(qemu: Qemu, data: st.DataObject) -> None:
    events = drained(qemu).events
    places = [n for n, e in enumerate(events) if e.event in ("schedule", "run")]
    assume(places)
    place, by = data.draw(st.sampled_from(places)), data.draw(st.integers(1, 6))
    noted_late = late(events, place, by)
    moved = events[place]
    first = next(e for e in noted_late if (e.bh, e.name) == (moved.bh, moved.name))
    # What runs first may have been scheduled before the recording began.
    assume(first.detail.get("enqueue") == "inserted")
    assert ends(noted_late) == ends(events)


def ends(events: list[Event]) -> Counter[tuple[str, str]]:
    """How many instances of each bottom half ran, and how many did not.

    The last schedule of all, and then a cancel or delete: crossed, they look like a schedule that
    is pending.
    """
    columns = pair_instances(framed(events))[["name", "end"]].astype(str)
    columns = columns.replace({"end": {"": "none", "cancel": "none", "delete": "none"}})
    return Counter(columns.itertuples(index=False, name=None))
