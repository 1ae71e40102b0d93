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
    CANCEL,
    COALESCED,
    INSERTED,
    REQUEUED,
    RUN,
    SCHEDULE,
    nearest_legal_order,
)
from qtrace.trace.details import address_of, detail_column, detail_table

# As SCHEDULE to DELETE number them.
KINDS = ("schedule", "run", "cancel", "delete")
ENQUEUES = {"inserted": INSERTED, "requeued": REQUEUED, "coalesced": COALESCED}
# Instead of one of these: it was scheduled anew while no row tells that it had ended.
UNSEEN = "unseen"


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
    kind = code_of(frame["event"], KINDS)
    kind[_seen_again(frame, kind == SCHEDULE)] = -1
    rows = np.flatnonzero(kind >= 0)
    kind = kind[rows]
    group, persistent = _groups(frame, rows, kind)
    order = stable_order(group)
    rows, kind, group, persistent = rows[order], kind[order], group[order], persistent[order]
    act = _acts(frame, rows, kind)
    order = _order(frame, rows, group, np.where(persistent, act, SCHEDULE), losses)
    rows, kind, act, persistent = rows[order], kind[order], act[order], persistent[order]
    opens = kind == SCHEDULE
    starts = starts_of(group)
    again = _again(act, opens, persistent, starts)
    coalesced = _coalesced(rows, opens & ~again, again, starts)
    kept = np.flatnonzero(~again)
    # A cancel or delete ends nothing when it is not pending.
    follows_open = np.zeros(len(kept), np.bool_)
    follows_open[1:] = opens[kept[:-1]] & ~starts_of(group[kept])[1:]
    kept = kept[(kind[kept] < CANCEL) | follows_open]
    single, several = kept[persistent[kept]], kept[~persistent[kept]]
    begin, end, unseen = match_single(group[single], opens[single], rows[single])
    others = match(group[several], opens[several], rows[several])
    begin, end = np.concatenate([begin, others[0]]), np.concatenate([end, others[1]])
    unseen = np.concatenate([unseen, np.zeros(len(others[0]), np.bool_)])
    order = _in_order(begin, end, len(frame))
    return _assemble(frame, begin[order], end[order], unseen[order], coalesced)


def _seen_again(frame: pd.DataFrame, schedules: npt.NDArray[np.bool_]) -> Positions:
    """The positions of schedules that a look at QEMU's memory found, of instances that an earlier
    schedule began.

    While it records, a recorder looks at what stays pending, and writes a schedule row for what its
    own probes have not seen scheduled. The probes of `--all` may have: they write to another file.
    It is the same when it has the same QEMUBH and nothing has ended it in between. The look that
    wrote the row knows the address; older recordings have it in its ``blocked`` row only.
    """
    found = np.flatnonzero(detail_column(frame["detail"], "pending_already", False) & schedules)
    if not len(found):
        return found
    bh = frame["bh"].to_numpy()
    about = frame["callback"].isin(frame["callback"].to_numpy()[found]).to_numpy() & (bh != 0)
    blocked = about & (frame["event"] == "blocked").to_numpy()
    ends = frame["event"].isin(("run", "cancel", "delete")).to_numpy()
    lives = np.flatnonzero(about & (schedules | ends))
    keys = ["callback", "opaque"]
    told_at = detail_column(frame["detail"].iloc[found], "bh", "")
    again = []
    for row, pointer in zip(found, told_at, strict=True):
        one = frame.iloc[row]
        same = (frame[keys] == one[keys]).all(axis=1).to_numpy()
        told = address_of(pointer)
        pointers = np.array([told], np.uint64) if told else np.unique(bh[blocked & same])
        before = lives[(lives < row) & np.isin(bh[lives], pointers)]
        # A cancel or delete has no argument of its own to compare.
        last = pd.Series(before).groupby(bh[before]).last().to_numpy(np.int64)
        if (schedules[last] & same[last]).any():
            again.append(row)
    return np.array(again, np.int64)


def _groups(frame: pd.DataFrame, rows: Positions, kind: npt.NDArray[np.int8]) -> tuple[Codes, Mask]:
    """A number for each set of events that may be pairs, and which have a pointer as identity.

    A bottom half is persistent when its pointer is known whenever it is scheduled.
    """

    def column(name: str) -> npt.NDArray[np.uint64]:
        return np.asarray(frame[name].to_numpy()[rows])

    group = numbered(column("bh"), column("callback"))
    pointed = column("bh") != 0
    known = np.zeros(int(group.max(initial=-1)) + 1, np.bool_)
    known[group[pointed & (kind != RUN)]] = True
    persistent = known[group] & pointed
    oneshot = np.flatnonzero(~persistent)
    if len(oneshot):
        own = rows[oneshot]
        what = numbered(*(frame[name].to_numpy()[own] for name in ("callback", "opaque")))
        ctx = frame["ctx"].to_numpy()[own]
        # Where one side could not read the context, it cannot tell pairs apart.
        blind = np.zeros(int(what.max()) + 1, np.bool_)
        blind[what[ctx == 0]] = True
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


def _order(
    frame: pd.DataFrame,
    rows: Positions,
    group: Codes,
    act: npt.NDArray[np.int8],
    losses: pd.DataFrame | None,
) -> Positions:
    """In which order they happened; of what has no flags, as noted."""
    flagged = np.zeros(int(group.max(initial=-1)) + 1, np.bool_)
    flagged[group[act >= INSERTED]] = True
    act = np.where(flagged[group], act, SCHEDULE)
    tid, time = (frame[name].to_numpy()[rows] for name in ("tid", "time_ns"))
    return nearest_legal_order(group, act, tid, time, losses)


def _again(act: npt.NDArray[np.int8], opens: Mask, persistent: Mask, starts: Mask) -> Mask:
    """Which schedules made no new instance, of events that stand group by group.

    A persistent bottom half is pending once however often it is scheduled; where the flags are
    known, they decide.
    """
    again = np.zeros(len(act), np.bool_)
    again[1:] = opens[1:] & opens[:-1] & ~starts[1:]
    return np.asarray((again & persistent & (act == SCHEDULE)) | (act == COALESCED))


def _coalesced(
    rows: Positions, first: Mask, again: Mask, starts: Mask
) -> tuple[Positions, Positions]:
    """The schedules into which others were coalesced, and how many.

    One that is noted after the end belongs to it, or to one whose schedule was lost: to none.
    """
    place = np.arange(len(rows))
    latest = np.maximum.accumulate(np.where(~again, place, -1))
    start = np.maximum.accumulate(np.where(starts, place, 0))
    into, count = np.unique(latest[again & (latest >= start)], return_counts=True)
    still_open = first[into]
    return rows[into[still_open]], count[still_open]


def _in_order(begin: Positions, end: Positions, length: int) -> Positions:
    """Which pair comes when, in the order of their first event."""
    number = np.full(length, -1)
    number[np.where(begin >= 0, begin, end)] = np.arange(len(begin))
    return number[number >= 0]


def _assemble(
    frame: pd.DataFrame,
    begin: Positions,
    end: Positions,
    unseen: Mask,
    coalesced: tuple[Positions, Positions],
) -> pd.DataFrame:
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
    number = np.zeros(len(frame), np.int32)
    number[coalesced[0]] = coalesced[1]
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
        "coalesced": np.where(scheduled, number[first], 0).astype(np.int64),
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
