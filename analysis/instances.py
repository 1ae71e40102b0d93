"""Which run belongs to which schedule.

An instance is one schedule of a bottom half until it runs, is cancelled or deleted, or the
trace ends. A one-shot's QEMUBH is made inside aio_bh_schedule_oneshot_full() and freed right
after its run, so its schedule has no pointer and its memory is reused at once: one-shots are
paired by what is called, where and on what (callback, ctx, opaque), the youngest unmatched
schedule first, because aio_bh_enqueue() inserts at the head of the list. A persistent bottom
half is paired by its pointer, and a schedule of one that is pending already is coalesced.
Where the recorder saw the flags (`--all`), these say what a schedule did: it is coalesced only
into one that is pending and still to run. By them the events of several threads, which may be noted
out of order, are put in order first (analysis/event_order.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import code_of
from qtrace.analysis.brackets import (
    Codes,
    Mask,
    Positions,
    match,
    match_single,
    numbered,
    stable_order,
    starts_of,
)
from qtrace.analysis.event_order import (
    AFTER,
    ANY,
    CANCEL,
    COALESCED,
    INSERTED,
    REQUEUED,
    RUN,
    SCHEDULE,
    Before,
    nearest_legal_order,
)
from qtrace.trace.details import address_of, detail_column, detail_table

# As SCHEDULE to DELETE number them.
KINDS = ("schedule", "run", "cancel", "delete")
ENQUEUES = {"inserted": INSERTED, "requeued": REQUEUED, "coalesced": COALESCED}
# Instead of one of these: it was scheduled anew while no row tells that it had ended.
UNSEEN = "unseen"
# Of a bottom half with flags, before it was seen: its state and its last event.
UNKNOWN = (ANY, int(np.iinfo(np.int64).min))


@dataclass(frozen=True)
class Lives:
    """What only a whole recording tells of its bottom halves, where a part of it is paired.

    Attributes:
        pointed: (bh, callback) of those whose pointer is known when they are scheduled.
        flagged: (bh, callback, name; empty where there is a callback) of those with flags.
        blind: (callback, opaque) of one-shots whose context somebody could not read.
        blocked: the ``blocked`` rows.
    """

    pointed: frozenset[tuple[int, int]]
    flagged: frozenset[tuple[int, int, str]]
    blind: frozenset[tuple[int, int]]
    blocked: pd.DataFrame


@dataclass
class Past:
    """What a part of a recording has to know of those before it (analysis/slices.py).

    Attributes:
        lives: see there.
        paired: of the first rows of its frame, which are from before: those that are no schedule
            that is pending. They are left alone.
        groups: by (bh, callback, name) what a bottom half with flags was at the end of the part
            before, and the time of its last event.
        ends: of the callbacks that looks found pending, what happened last to each bottom half.
    """

    lives: Lives
    paired: Mask
    groups: dict[tuple[int, int, str], tuple[int, int]]
    ends: pd.DataFrame


@dataclass(frozen=True)
class Pairs:
    """Instances as positions in the frame; -1 for none. In the order of their first event.

    Attributes:
        begin, end: the schedule; the run, cancel or delete.
        over: where it was over: ``end``, or the schedule that shows it; -1 while it is pending.
        again: positions of the schedules that made no instance, and of those they went into.
        spans: first and last position of what was put in order.
        flagged: what ``groups_at`` needs.
    """

    begin: Positions
    end: Positions
    over: Positions
    again: tuple[Positions, Positions]
    spans: list[tuple[int, int]]
    flagged: Flagged | None

    @property
    def first(self) -> Positions:
        """Where each was seen first."""
        return np.where(self.begin >= 0, self.begin, self.end)

    @property
    def unseen(self) -> Mask:
        """Of which the end was not seen though there must have been one."""
        return (self.end < 0) & (self.over >= 0)


def pair_instances(frame: pd.DataFrame, losses: pd.DataFrame | None = None) -> pd.DataFrame:
    """Events of one trace, in time order, to one row per instance.

    Where events were lost (``losses``, as of a ``Trace``) they are taken as they were noted.

    Columns: ``name``, ``context``, ``ctx``, ``bh``, ``callback``, ``opaque``;
    ``scheduled_ns``, ``scheduled_row``, ``scheduled_by_tid`` (Int64, absent when scheduled
    before the trace began), ``scheduled_by_thread``, ``scheduled_by_role``,
    ``scheduled_stack``; ``end`` ("run", "cancel", "delete", "" when still pending,
    or "unseen": the flags of its next schedule show that it was over, but no row tells how);
    ``ended_ns``, ``ended_row``, ``tid`` (Int64, absent when pending), ``thread``, ``role``,
    ``stack`` of that end; ``wait_ns`` (Int64, 0 where the schedule was noted after the end);
    ``coalesced`` (int64, further schedules of the same instance). In the order of their first
    event.
    """
    pairs = pairs_of(frame, losses)
    coalesced = swallowed_by(pairs, len(frame))
    return assemble(frame, pairs.begin, pairs.end, pairs.unseen, coalesced)


def pairs_of(
    frame: pd.DataFrame, losses: pd.DataFrame | None = None, past: Past | None = None
) -> Pairs:
    """Which events of a trace, or of a part of it, make an instance."""
    kind = code_of(frame["event"], KINDS)
    kind[_seen_again(frame, kind == SCHEDULE, past)] = -1
    if past is not None:
        kind[: len(past.paired)][past.paired] = -1
    rows = np.flatnonzero(kind >= 0)
    kind = kind[rows]
    group, persistent = _groups(frame, rows, kind, past)
    order = stable_order(group)
    rows, kind, group, persistent = rows[order], kind[order], group[order], persistent[order]
    act = _acts(frame, rows, kind)
    order, spans, flagged = _order(
        frame, rows, group, np.where(persistent, act, SCHEDULE), losses, past
    )
    rows, kind, act, persistent = rows[order], kind[order], act[order], persistent[order]
    opens = kind == SCHEDULE
    starts = starts_of(group)
    again = _again(act, opens, persistent, starts)
    swallowed = _swallowed(rows, opens & ~again, again, starts)
    kept = np.flatnonzero(~again)
    # A cancel or delete ends nothing when it is not pending.
    follows_open = np.zeros(len(kept), np.bool_)
    follows_open[1:] = opens[kept[:-1]] & ~starts_of(group[kept])[1:]
    kept = kept[(kind[kept] < CANCEL) | follows_open]
    single, several = kept[persistent[kept]], kept[~persistent[kept]]
    begin, end, over = match_single(group[single], opens[single], rows[single])
    others = match(group[several], opens[several], rows[several])
    begin, end = np.concatenate([begin, others[0]]), np.concatenate([end, others[1]])
    over = np.concatenate([over, others[1]])
    order = _in_order(begin, end, len(frame))
    return Pairs(begin[order], end[order], over[order], swallowed, spans, flagged)


def swallowed_by(pairs: Pairs, length: int) -> npt.NDArray[np.int32]:
    """For each of so many rows how many schedules went into it."""
    found = np.zeros(length, np.int32)
    into, count = np.unique(pairs.again[1], return_counts=True)
    found[into] = count
    return found


def _seen_again(
    frame: pd.DataFrame, schedules: npt.NDArray[np.bool_], past: Past | None
) -> Positions:
    """The positions of schedules that a look at QEMU's memory found, of instances that an earlier
    schedule began.

    While it records, a recorder looks at what stays pending, and writes a schedule row for what its
    own probes have not seen scheduled. The probes of `--all` may have: they write to another file.
    It is the same when it has the same QEMUBH and nothing has ended it in between. The look that
    wrote the row knows the address; older recordings have it in its ``blocked`` row only.
    """
    found = np.flatnonzero(detail_column(frame["detail"], "pending_already", False) & schedules)
    found = found[found >= (0 if past is None else len(past.paired))]
    if not len(found):
        return found
    looks = frame[(frame["event"] == "blocked").to_numpy()] if past is None else past.lives.blocked
    blocked = looks[(looks["bh"] != 0).to_numpy()]
    lives = _lives(frame, frozenset(frame["callback"].iloc[found].tolist()), past)
    keys = ["callback", "opaque"]
    told_at = detail_column(frame["detail"].iloc[found], "bh", "")
    again = []
    for row, pointer in zip(found, told_at, strict=True):
        one = frame.iloc[row]
        told = address_of(pointer)
        seen = blocked["bh"][(blocked[keys] == one[keys]).all(axis=1).to_numpy()].unique()
        pointers = np.array([told], np.uint64) if told else seen
        before = lives[((lives["at"] < row) & lives["bh"].isin(pointers)).to_numpy()]
        last = before.groupby("bh").tail(1)
        # A cancel or delete has no argument of its own to compare.
        if (last["schedule"] & (last[keys] == one[keys]).all(axis=1)).any():
            again.append(row)
    return np.array(again, np.int64)


def _lives(frame: pd.DataFrame, callbacks: frozenset[int], past: Past | None) -> pd.DataFrame:
    """What happened to the bottom halves of some callbacks that have a pointer: ``bh``,
    ``callback``, ``opaque``, ``schedule``, and ``at``, the position; -1 for the part before."""
    kind = code_of(frame["event"], KINDS)
    kind[: 0 if past is None else len(past.paired)] = -1
    own = (kind >= 0) & (frame["bh"] != 0).to_numpy() & frame["callback"].isin(callbacks).to_numpy()
    at = np.flatnonzero(own)
    found = frame.loc[own, ["bh", "callback", "opaque"]].assign(
        at=at, schedule=kind[at] == SCHEDULE
    )
    return found if past is None else pd.concat([past.ends, found], ignore_index=True)


def ends_at(frame: pd.DataFrame, cut: int, callbacks: frozenset[int], past: Past) -> pd.DataFrame:
    """What ``Past.ends`` is at a position of the frame."""
    if not callbacks:
        return past.ends
    lives = _lives(frame, callbacks, past)
    last = lives[(lives["at"] <= cut).to_numpy()].groupby("bh").tail(1)
    return last.assign(at=-1)


def _groups(
    frame: pd.DataFrame, rows: Positions, kind: npt.NDArray[np.int8], past: Past | None
) -> tuple[Codes, Mask]:
    """A number for each set of events that may be pairs, and which have a pointer as identity.

    A bottom half is persistent when its pointer is known whenever it is scheduled.
    """

    def column(name: str) -> npt.NDArray[np.uint64]:
        return np.asarray(frame[name].to_numpy()[rows])

    group = numbered(column("bh"), column("callback"))
    pointed = column("bh") != 0
    known = np.zeros(int(group.max(initial=-1)) + 1, np.bool_)
    known[group[pointed & (kind != RUN)]] = True
    if past is not None:
        known |= _is_one_of(past.lives.pointed, group, column("bh"), column("callback"))
    persistent = known[group] & pointed
    oneshot = np.flatnonzero(~persistent)
    if len(oneshot):
        own = rows[oneshot]
        what = numbered(*(frame[name].to_numpy()[own] for name in ("callback", "opaque")))
        ctx = frame["ctx"].to_numpy()[own]
        # Where one side could not read the context, it cannot tell pairs apart.
        blind = np.zeros(int(what.max()) + 1, np.bool_)
        blind[what[ctx == 0]] = True
        if past is not None:
            values = (frame[name].to_numpy()[own] for name in ("callback", "opaque"))
            blind |= _is_one_of(past.lives.blind, what, *values)
        group[oneshot] = len(known) + numbered(what, np.where(blind[what], 0, ctx))
    nameless = column("callback") == 0
    if nameless.any():
        # Without a callback the name is the next best; it stands for nothing else.
        group = numbered(group, np.where(nameless, frame["name"].array.codes[rows], -1))
    return group, persistent


def _acts(frame: pd.DataFrame, rows: Positions, kind: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """What each event did: of a schedule, what the flags say, where they are known."""
    table = detail_table(frame["detail"], "enqueue", "")
    acts = np.array([ENQUEUES.get(text, SCHEDULE) for text in table], np.int8)
    enqueued = acts[frame["detail"].array.codes[rows]]
    return np.where(kind == SCHEDULE, enqueued, kind)


def _is_one_of(keys: frozenset[Any], group: Codes, *columns: npt.NDArray[Any]) -> Mask:
    """Of each group, whether its values are among some."""
    _, first = np.unique(group, return_index=True)
    values = zip(*(column[first].tolist() for column in columns), strict=True)
    return np.fromiter((key in keys for key in values), np.bool_, len(first))


def _keys(frame: pd.DataFrame, rows: Positions) -> list[tuple[int, int, str]]:
    """What bottom halves with flags are called from one part of a recording to the next."""
    own = frame[["bh", "callback", "name"]].iloc[rows]
    names = np.where(own["callback"] == 0, own["name"].astype(object), "")
    return list(zip(own["bh"].tolist(), own["callback"].tolist(), names.tolist(), strict=True))


def _order(
    frame: pd.DataFrame,
    rows: Positions,
    group: Codes,
    act: npt.NDArray[np.int8],
    losses: pd.DataFrame | None,
    past: Past | None,
) -> tuple[Positions, list[tuple[int, int]], Flagged | None]:
    """In which order they happened; of what has no flags, as noted. Which stretches of the frame
    were put in order. And of a part of a recording what had flags."""
    flagged = np.zeros(int(group.max(initial=-1)) + 1, np.bool_)
    flagged[group[act >= INSERTED]] = True
    before = Before.unknown(len(flagged))
    first = np.flatnonzero(starts_of(group))
    if past is not None:
        # Of what has no flags in this part, others may have some.
        for number, key in zip(group[first], _keys(frame, rows[first]), strict=True):
            flagged[number] |= key in past.lives.flagged
            before.state[number], before.time_ns[number] = past.groups.get(key, UNKNOWN)
    act = np.where(flagged[group], act, SCHEDULE)
    tid, time = (frame[name].to_numpy()[rows] for name in ("tid", "time_ns"))
    # What stands open from the part before is in order: of it the state tells.
    new = np.flatnonzero(rows >= (0 if past is None else len(past.paired)))
    found, spans = nearest_legal_order(group[new], act[new], tid[new], time[new], losses, before)
    order = np.arange(len(rows))
    order[new] = new[found]
    stretches = [(rows[new[a:b]].min(), rows[new[a:b]].max()) for a, b in spans]
    if past is None:
        return order, stretches, None
    own = order[new][flagged[group[new]]]
    return order, stretches, Flagged(rows[own], group[own], act[own])


@dataclass(frozen=True)
class Flagged:
    """The events of bottom halves whose flags are known, group by group as they happened."""

    rows: Positions
    group: Codes
    act: npt.NDArray[np.int8]


def groups_at(
    frame: pd.DataFrame, pairs: Pairs, cut: int, past: Past
) -> dict[tuple[int, int, str], tuple[int, int]]:
    """What ``Past.groups`` is at a position of the frame; nothing may have been put in order across
    it."""
    if pairs.flagged is None:
        return past.groups
    own = pairs.flagged.rows <= cut
    rows, group, act = pairs.flagged.rows[own], pairs.flagged.group[own], pairs.flagged.act[own]
    if not len(rows):
        return past.groups
    first = np.flatnonzero(starts_of(group))
    place = np.arange(len(rows))
    # As in event_order: all but a cancel leave it in the same state, whatever it was before.
    telling = np.maximum.reduceat(np.where(act != CANCEL, place, -1), first)
    last = np.append(first[1:], len(rows)) - 1
    latest = frame["time_ns"].to_numpy()[np.maximum.reduceat(rows, first)]
    found = dict(past.groups)
    for key, at, end, time_ns in zip(
        _keys(frame, rows[first]), telling.tolist(), last.tolist(), latest.tolist(), strict=True
    ):
        state = int(AFTER[ANY, act[at]]) if at >= 0 else past.groups.get(key, UNKNOWN)[0]
        if at < end:
            state = int(AFTER[state, CANCEL])
        found[key] = (state, time_ns)
    return found


def _again(act: npt.NDArray[np.int8], opens: Mask, persistent: Mask, starts: Mask) -> Mask:
    """Which schedules made no new instance, of events that stand group by group.

    A persistent bottom half is pending once however often it is scheduled; where the flags are
    known, they decide.
    """
    again = np.zeros(len(act), np.bool_)
    again[1:] = opens[1:] & opens[:-1] & ~starts[1:]
    return np.asarray((again & persistent & (act == SCHEDULE)) | (act == COALESCED))


def _swallowed(
    rows: Positions, first: Mask, again: Mask, starts: Mask
) -> tuple[Positions, Positions]:
    """The schedules that made no instance, and those into which they were coalesced.

    One that is noted after the end belongs to it, or to one whose schedule was lost: to none.
    """
    place = np.arange(len(rows))
    latest = np.maximum.accumulate(np.where(~again, place, -1))
    start = np.maximum.accumulate(np.where(starts, place, 0))
    own = np.flatnonzero(again & (latest >= start))
    own = own[first[latest[own]]]
    return rows[own], rows[latest[own]]


def _in_order(begin: Positions, end: Positions, length: int) -> Positions:
    """Which pair comes when, in the order of their first event."""
    number = np.full(length, -1)
    number[np.where(begin >= 0, begin, end)] = np.arange(len(begin))
    return number[number >= 0]


def assemble(
    frame: pd.DataFrame,
    begin: Positions,
    end: Positions,
    unseen: Mask,
    coalesced: npt.NDArray[np.int32],
) -> pd.DataFrame:
    """The instances that begin and end at these positions, see ``pair_instances``.

    Args:
        coalesced: of each row of the frame, how many schedules went into it.
    """
    scheduled, ended = begin >= 0, end >= 0
    first, last = np.where(scheduled, begin, end), np.where(ended, end, begin)

    def at(column: str, rows: Positions) -> npt.NDArray[Any]:
        return np.asarray(frame[column].to_numpy()[rows])

    def maybe(column: str, rows: Positions, there: Mask) -> Any:
        return pd.arrays.IntegerArray(at(column, rows), ~there)

    def text(column: str, rows: Positions, there: Mask) -> Any:
        """Empty where it is not there."""
        values = frame[column].array
        categories = values.categories
        if "" not in categories:
            categories = categories.append(pd.Index([""]))
        codes = np.where(there, values.codes[rows], _small(categories.get_loc("")))
        return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(categories))

    def known(column: str) -> npt.NDArray[Any]:
        values = at(column, last)
        return np.where(values != 0, values, at(column, first))

    everywhere = np.ones(len(begin), np.bool_)
    context = text("context", last, everywhere)
    unknown = context.codes == context.categories.get_loc("")
    columns = {
        "name": text("name", last, everywhere),
        "context": text("context", np.where(unknown, first, last), everywhere),
        "ctx": known("ctx"),
        "bh": known("bh"),
        "callback": at("callback", last),
        "opaque": at("opaque", last),
        # One that ran before its schedule was noted had been scheduled by then.
        "scheduled_ns": pd.arrays.IntegerArray(
            np.minimum(at("time_ns", first), at("time_ns", last)), ~scheduled
        ),
        "scheduled_row": maybe("row", first, scheduled),
        "scheduled_by_tid": maybe("tid", first, scheduled),
        "scheduled_by_thread": text("thread", first, scheduled),
        "scheduled_by_role": text("role", first, scheduled),
        "scheduled_stack": text("stack", first, scheduled),
        "end": _ends(frame["event"].array, np.where(ended, last, -1), unseen),
        "ended_ns": maybe("time_ns", last, ended),
        "ended_row": maybe("row", last, ended),
        "tid": maybe("tid", last, ended),
        "thread": text("thread", last, ended),
        "role": text("role", last, ended),
        "stack": text("stack", last, ended),
        "coalesced": np.where(scheduled, coalesced[first], 0).astype(np.int64),
    }
    columns["wait_ns"] = columns["ended_ns"] - columns["scheduled_ns"]
    return pd.DataFrame(columns, copy=False)


def _ends(events: Any, rows: Positions, unseen: Mask) -> Any:
    """The events at these rows; empty for what is still pending."""
    names = [*KINDS[RUN:], "", UNSEEN]
    table = np.append(pd.Index(names).get_indexer(events.categories), names.index(""))
    codes = table[np.where(rows >= 0, events.codes[rows], -1)].astype(np.int8)
    codes[unseen] = names.index(UNSEEN)
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(names))


def _small(code: int) -> Any:
    """A number that does not widen the codes beside it."""
    return np.array(code, np.min_scalar_type(-code - 1))
