"""Which run belongs to which schedule.

An instance is one schedule of a bottom half until it runs, is cancelled or deleted, or the
trace ends. A one-shot's QEMUBH is made inside aio_bh_schedule_oneshot_full() and freed right
after its run, so its schedule has no pointer and its memory is reused at once: one-shots are
paired by what is called, where and on what (callback, ctx, opaque), the youngest unmatched
schedule first, because aio_bh_enqueue() inserts at the head of the list. A persistent bottom
half is paired by its pointer, and a schedule of one that is pending already is coalesced.
Where the recorder saw the flags (`--all`), these say what a schedule did: it is coalesced only
into one that is pending and still to run, and events of two CPUs may be noted out of order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

KINDS = ("schedule", "run", "cancel", "delete")
KEY = ["bh", "callback", "ctx", "opaque"]


def pair_instances(frame: pd.DataFrame) -> pd.DataFrame:
    """Events of one trace, in time order, to one row per instance.

    Columns: ``name``, ``context``, ``ctx``, ``bh``, ``callback``, ``opaque``;
    ``scheduled_ns``, ``scheduled_row``, ``scheduled_by_tid`` (Int64, absent when scheduled
    before the trace began), ``scheduled_by_thread``, ``scheduled_by_role``,
    ``scheduled_stack``; ``end`` ("run", "cancel", "delete", or "" when still pending);
    ``ended_ns``, ``ended_row``, ``tid`` (Int64, absent when pending), ``thread``, ``role``,
    ``stack`` of that end; ``wait_ns`` (Int64); ``coalesced`` (int64, further schedules of the
    same instance). In the order of their first event.
    """
    events = frame[frame["event"].isin(KINDS)]
    events = events.assign(order=np.arange(len(events)), coalesced=np.int64(0))
    persistent = _persistent(events)
    begin, end = _match(events, persistent)
    return _assemble(events, begin, end)


def _persistent(events: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows belong to a bottom half that has a pointer whenever it is scheduled."""
    handled = (events["event"] != "run") & (events["bh"] != 0)
    known = pd.MultiIndex.from_frame(events.loc[handled, ["bh", "callback"]].drop_duplicates())
    rows = pd.MultiIndex.from_frame(events[["bh", "callback"]])
    return np.asarray((events["bh"] != 0) & rows.isin(known), dtype=np.bool_)


def _groups(events: pd.DataFrame, persistent: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A number for each set of events that may be pairs."""
    key = events[KEY].copy()
    key.loc[persistent, ["ctx", "opaque"]] = 0
    key.loc[~persistent, "bh"] = 0
    # Where one side could not read the context, it cannot tell pairs apart.
    blind = (key["ctx"] == 0).groupby([key["bh"], key["callback"], key["opaque"]]).transform("any")
    key.loc[blind.astype(bool), "ctx"] = 0
    # Without a callback the name is the next best; it stands for nothing else.
    names = events["name"].cat.codes.where(events["callback"] == 0, -1)
    number = key.assign(name=names).groupby([*KEY, "name"], sort=False).ngroup()
    return np.asarray(number, dtype=np.int64)


def _match(
    events: pd.DataFrame, persistent: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions in ``events`` of each instance's beginning and end, -1 where there is none."""
    work = pd.DataFrame(
        {
            "position": np.arange(len(events)),
            "group": _groups(events, persistent),
            "opens": (events["event"] == "schedule").to_numpy(),
            "runs": (events["event"] == "run").to_numpy(),
        }
    )
    # A persistent bottom half is pending once however often it is scheduled, and a cancel or
    # delete ends nothing when it is not.
    before = work.groupby("group")["opens"].shift(1, fill_value=False).to_numpy(np.bool_)
    enqueued = _enqueued(events)
    again = persistent & work["opens"].to_numpy() & before & (enqueued == "")
    again |= enqueued == "coalesced"
    idle = ~work["opens"].to_numpy() & ~work["runs"].to_numpy() & ~before
    counted = pd.Series(again).groupby(work["group"].to_numpy()).cumsum()
    work["coalesced"] = counted.to_numpy(np.int64)
    events["coalesced"] = _coalesced(work, again)
    work = work[~(again | idle)]

    # A stack of opening and closing brackets: what opens a level is closed by the next event
    # of that level. Closing without opening only shifts all later levels by one.
    step = np.where(work["opens"], 1, -1)
    level = pd.Series(step, index=work.index).groupby(work["group"]).cumsum()
    work = work.assign(level=level + ~work["opens"]).sort_values(
        ["group", "level", "position"], kind="stable"
    )
    same = work.groupby(["group", "level"])
    opens, position = work["opens"].to_numpy(), work["position"].to_numpy(np.int64)
    follows = same["position"].shift(-1, fill_value=-1).to_numpy(np.int64)
    opened = same["opens"].shift(1, fill_value=False).to_numpy(np.bool_)
    alone = ~opens & ~opened
    begin = np.concatenate([position[opens], np.full(alone.sum(), -1)])
    end = np.concatenate([follows[opens], position[alone]])
    return begin, end


def _enqueued(events: pd.DataFrame) -> npt.NDArray[np.object_]:
    """What each schedule did to the list: "inserted", "coalesced", "requeued", "" if unknown."""
    detail = events["detail"].cat.remove_unused_categories()
    found = detail.cat.categories.str.extract(r'"enqueue":"(\w+)"', expand=False).fillna("")
    return np.asarray(found.to_numpy(object)[detail.cat.codes.to_numpy()], dtype=np.object_)


def _coalesced(work: pd.DataFrame, again: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each schedule, how many later ones of its group were coalesced into it."""
    first = pd.Series(work["opens"].to_numpy() & ~again)
    instance = first.groupby(work["group"].to_numpy()).cumsum()
    total = pd.Series(again).groupby([work["group"].to_numpy(), instance]).transform("sum")
    return np.where(first, total, 0).astype(np.int64)


def _assemble(
    events: pd.DataFrame, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> pd.DataFrame:
    first = np.minimum(np.where(begin < 0, end, begin), np.where(end < 0, begin, end))
    order = np.argsort(first, kind="stable")
    begin, end, first = begin[order], end[order], first[order]
    last = np.where(end < 0, begin, end)
    scheduled, ended = begin >= 0, end >= 0

    def at(column: str, rows: npt.NDArray[np.int64]) -> pd.Series:
        return events[column].take(rows).reset_index(drop=True)

    def maybe(column: str, rows: npt.NDArray[np.int64], there: npt.NDArray[np.bool_]) -> pd.Series:
        return at(column, rows).astype("Int64").where(pd.Series(there))

    def text(column: str, rows: npt.NDArray[np.int64], there: npt.NDArray[np.bool_]) -> pd.Series:
        values = at(column, rows)
        if "" not in values.cat.categories:
            values = values.cat.add_categories([""])
        return values.where(pd.Series(there), "")

    result = {"name": at("name", last)}
    context = at("context", last)
    result["context"] = context.where(context != "", at("context", first))
    for column in ("ctx", "bh"):
        known = at(column, last)
        result[column] = known.where(known != 0, at(column, first))
    result |= {column: at(column, last) for column in ("callback", "opaque")}
    result |= {
        "scheduled_ns": maybe("time_ns", first, scheduled),
        "scheduled_row": maybe("row", first, scheduled),
        "scheduled_by_tid": maybe("tid", first, scheduled),
        "scheduled_by_thread": text("thread", first, scheduled),
        "scheduled_by_role": text("role", first, scheduled),
        "scheduled_stack": text("stack", first, scheduled),
        "end": text("event", last, ended),
        "ended_ns": maybe("time_ns", last, ended),
        "ended_row": maybe("row", last, ended),
        "tid": maybe("tid", last, ended),
        "thread": text("thread", last, ended),
        "role": text("role", last, ended),
        "stack": text("stack", last, ended),
        "coalesced": at("coalesced", first).where(pd.Series(scheduled), 0),
    }
    instances = pd.DataFrame(result)
    instances["wait_ns"] = instances["ended_ns"] - instances["scheduled_ns"]
    return instances
