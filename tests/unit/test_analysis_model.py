"""What the analysis makes of a recording of `--all`, beside a model that did it step by step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import Trace
from qtrace.trace.reader import TraceFile
from qtrace.trace.schema import Event
from tests.unit.event_rows import numbered_runs
from tests.unit.qemu_model import CONTEXTS, IOTHREAD, MAIN, VCPU, WORKER, Half, Life, Qemu
from tests.unit.test_analysis_pairing import to_frame

PROPERTY = settings(max_examples=60)
NAMES = ("a_bh", "b_bh")


@st.composite
def sessions(draw: st.DrawFn) -> Qemu:
    """Any number of threads doing anything that QEMU lets them do."""
    qemu = Qemu()
    halves = [qemu.new(draw(st.sampled_from(NAMES)), c, n) for n, c in enumerate(CONTEXTS)]
    for _ in range(draw(st.integers(0, 60))):
        tid = draw(st.sampled_from([MAIN, MAIN, VCPU, IOTHREAD, WORKER, WORKER + 1]))
        act = draw(
            st.sampled_from(["schedule", "oneshot", "cancel", "delete", "poll", *["step"] * 4])
        )
        _act(draw, qemu, halves, tid, act)
    return qemu


def _act(draw: st.DrawFn, qemu: Qemu, halves: list[Half], tid: int, act: str) -> None:
    if act == "oneshot":
        context = draw(st.sampled_from(list(CONTEXTS)))
        half = qemu.new(draw(st.sampled_from(NAMES)), context, draw(st.integers(1, 2)))
        qemu.schedule(tid, half, oneshot=True)
    elif act == "poll":
        context = draw(st.sampled_from(list(CONTEXTS)))
        inside = bool(qemu.stacks.get(tid))
        # A thread polls again only inside a callback.
        if not inside or qemu.stacks[tid][-1].running:
            qemu.poll(tid, context, nested=inside or draw(st.booleans()))
    elif act == "step":
        if qemu.stacks.get(tid):
            qemu.step(tid)
    else:
        which = draw(st.integers(0, len(halves) - 1))
        if act == "delete":
            qemu.delete(tid, halves[which])
            # Its memory is used again, once it is freed.
            old = halves[which]
            halves[which] = qemu.new(old.name, old.context, old.opaque)
        elif act == "cancel":
            qemu.cancel(tid, halves[which])
        else:
            qemu.schedule(tid, halves[which])


def recorded(qemu: Qemu, first: int, last: int) -> Trace:
    """A recording of a part of it: places are row numbers."""
    events = qemu.events[first:last]
    began = {place: run for run, place in _returns(qemu).items()}
    for place in range(first, last):
        if qemu.events[place].event == "return" and began[place] < first:
            # The recorder joins a return with a run that it has seen.
            lost: dict[str, Any] = {"name": "", "callback": 0, "opaque": 0, "ctx": 0}
            events[place - first] = replace(events[place - first], **lost)
    frame = framed(events).assign(row=np.arange(first, last, dtype=np.int64))
    header: dict[str, Any] = {"target": {"pid": MAIN}, "watched": [], "all": {}}
    losses = pd.DataFrame({c: [] for c in ("since_ns", "until_ns", "count")}, dtype="int64")
    return Trace(
        TraceFile(
            path=Path("model"), frame=frame, header=header, losses=losses, step_losses=losses,
            qmp_losses=losses,
            lost_events=0, exit=None, detach={"until_ns": 1 << 60}, warnings=[], complete=True,
        )
    )  # fmt: skip


def framed(events: list[Event]) -> pd.DataFrame:
    """As the reader gives them, with the facts in ``detail``."""
    details = pd.Categorical([json.dumps(e.detail, separators=(",", ":")) for e in events])
    return to_frame(events).assign(detail=details)


def _returns(qemu: Qemu) -> dict[int, int]:
    """The place of each run and of its return."""
    return {
        life.ended: life.returned
        for life in qemu.lives
        if life.ended is not None and life.returned is not None
    }


def visible(life: Life, first: int, last: int) -> tuple[int, int, str, str] | None:
    """What a recording can show of it: the places of its begin and end (-1 for none), how it ended
    and its verdict; None for nothing."""
    ended = life.ended is not None and life.ended < last
    if life.began >= last or (ended and life.ended is not None and life.ended < first):
        return None
    if life.began < first and (not ended or life.end != "run"):
        # Without its schedule nothing tells a cancel of it from one of nothing.
        return None
    begin = life.began if life.began >= first else -1
    if not ended or life.ended is None:
        return (begin, -1, "", "pending")
    return (begin, life.ended, life.end, life.verdict)


@PROPERTY
@given(sessions(), st.data())
def test_instances_are_what_happened_from_any_moment_to_any(
    qemu: Qemu, data: st.DataObject
) -> None:
    first = data.draw(st.one_of(st.just(0), st.integers(0, len(qemu.events))))
    last = data.draw(st.one_of(st.just(len(qemu.events)), st.integers(first, len(qemu.events))))
    one = recorded(qemu, first, last)
    seen = [known for life in qemu.lives if (known := visible(life, first, last))]
    silent = silent_names(qemu, seen)
    expected = {
        (begin, end, how, "inconclusive" if not how and name(qemu, begin) in silent else verdict)
        for begin, end, how, verdict in seen
    }
    rows = one.instances[["scheduled_row", "ended_row"]].fillna(-1).astype(int)
    ends = one.instances[["end", "verdict"]].astype(str)
    found = set(map(tuple, pd.concat([rows, ends], axis=1).to_numpy(object).tolist()))
    assert found == expected
    assert len(one.instances) == len(seen)
    merged = {life.began: len([p for p in life.coalesced if p < last]) for life in qemu.lives}
    for begin, count in zip(rows["scheduled_row"], one.instances["coalesced"], strict=True):
        assert count == (merged[begin] if begin >= 0 else 0)


def silent_names(qemu: Qemu, seen: list[tuple[int, int, str, str]]) -> set[str]:
    """Bottom halves that were scheduled twice and never ran: their probe may be broken."""
    begun = [name(qemu, begin) for begin, *_rest in seen if begin >= 0]
    ran = {name(qemu, end) for _begin, end, how, _verdict in seen if how == "run"}
    return {one for one in begun if begun.count(one) >= 2 and one not in ran}


def name(qemu: Qemu, place: int) -> str:
    return qemu.events[place].name


@PROPERTY
@given(sessions(), st.data())
def test_ends_and_nesting_of_runs_are_what_happened(qemu: Qemu, data: st.DataObject) -> None:
    first = data.draw(st.one_of(st.just(0), st.integers(0, len(qemu.events))))
    one = recorded(qemu, first, len(qemu.events))
    runs, returns = numbered_runs(one.runs), _returns(qemu)
    lives = {life.ended: life for life in qemu.lives if life.end == "run"}
    places = runs["row"].tolist()
    assert places == [p for p in range(first, len(qemu.events)) if qemu.events[p].event == "run"]
    for index, place in enumerate(places):
        run, life = runs.iloc[index], lives[place]
        end = qemu.events[returns[place]].time_ns if place in returns else -1
        assert run["end_ns"] == end
        # Only a run that is known to have ended is known to lie around others.
        around = [p for p in life.ran_in if p >= first and p in returns]
        assert (places[run["outer"]] if run["outer"] >= 0 else None) == next(iter(around), None)
        inside = [p for p in life.scheduled_in if p >= first and p in returns]
        parent = places[run["parent"]] if run["parent"] >= 0 else None
        if life.began < first or not inside:
            assert parent is None
        else:
            assert parent in inside
    still = [p for p in places if p not in returns]
    assert [places[index] for index in one.unfinished.index] == still
