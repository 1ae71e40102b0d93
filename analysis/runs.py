"""Runs of bottom halves with their ends, and the run inside which each was scheduled."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.loss import disturbed
from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.verdicts import LOST, MAIN_CONTEXTS

Numbers = npt.NDArray[np.int64]

COLUMNS = ["time_ns", "row", "tid", "thread", "role", "name", "context", "callback", "opaque",
           "stack"]  # fmt: skip


def runs_of(
    events: pd.DataFrame, durations: pd.DataFrame, instances: pd.DataFrame, losses: pd.DataFrame
) -> pd.DataFrame:
    """The runs of one trace in time order, with:

    * ``end_ns`` (int64): when the callback returned, -1 when no row tells;
    * ``instance`` (int64): its index in ``instances``, -1 for none;
    * ``scheduled_ns`` (int64), -1 when that was not recorded or may have been lost;
    * ``outer`` (int64): the outermost run that it is known to lie in, as an index into this frame;
    * ``parent`` (int64): the run that the scheduling thread was in then, likewise; -1 for none, or
      where events were lost since that run began: it may have been in another one.
    """
    runs = events.loc[(events["event"] == "run").to_numpy(), COLUMNS].reset_index(drop=True)
    rows = runs["row"].to_numpy(np.int64)
    time = runs["time_ns"].to_numpy(np.int64)
    end = np.full(len(runs), -1, np.int64)
    at, found = find_rows(rows, durations["row"].to_numpy(np.int64))
    end[at] = time[at] + durations["duration_ns"].to_numpy(np.int64)[found]
    instance = np.full(len(runs), -1, np.int64)
    ran = np.flatnonzero((instances["end"] == "run").to_numpy())
    at, found = find_rows(rows, whole(instances["ended_row"].take(ran)))
    instance[at] = ran[found]
    # Of these the schedule may be another's.
    sure = (instances["reason"].take(ran[found]) != LOST).to_numpy()
    at, found = at[sure], found[sure]
    scheduled = np.full(len(runs), -1, np.int64)
    by = np.full(len(runs), -1, np.int64)
    scheduled[at] = whole(instances["scheduled_ns"].take(ran))[found]
    by[at] = whole(instances["scheduled_by_tid"].take(ran))[found]
    runs["end_ns"], runs["instance"], runs["scheduled_ns"] = end, instance, scheduled
    outer = _outermost(runs)
    runs["outer"] = outer
    runs["parent"] = moment(runs, by, scheduled, losses)
    return runs


def _outermost(runs: pd.DataFrame) -> Numbers:
    """For each run the outermost one that it lies in, -1 where it lies in none."""
    found = np.full(len(runs), -1, np.int64)
    began, ended = runs["time_ns"].to_numpy(np.int64), runs["end_ns"].to_numpy(np.int64)
    runner = runs["tid"].to_numpy(np.int64)
    for thread in np.unique(runner):
        own = np.flatnonzero(runner == thread)
        until = np.maximum.accumulate(ended[own])
        top = np.ones(len(own), np.bool_)
        top[1:] = began[own[1:]] > until[:-1]
        last = np.maximum.accumulate(np.where(top, np.arange(len(own)), 0))
        found[own] = np.where(top, -1, own[last])
    return found


def _inside(runs: pd.DataFrame, outer: Numbers, tid: Numbers, time: Numbers) -> Numbers:
    """For each moment of a thread the run that it was in, -1 for none.

    The one that began last, if it had not ended, else the outermost one: a moment between two
    inner runs of a third, deeper level counts as the outermost's.
    """
    found = np.full(len(tid), -1, np.int64)
    began, ended = runs["time_ns"].to_numpy(np.int64), runs["end_ns"].to_numpy(np.int64)
    runner = runs["tid"].to_numpy(np.int64)
    for thread in np.unique(tid[tid > 0]):
        own, asked = np.flatnonzero(runner == thread), np.flatnonzero(tid == thread)
        if not len(own):
            continue
        last = began[own].searchsorted(time[asked], side="right") - 1
        latest = np.where(last >= 0, own[last], -1)
        root = np.where((latest >= 0) & (outer[latest] >= 0), outer[latest], latest)
        open_still = [(run >= 0) & (ended[run] >= time[asked]) for run in (latest, root)]
        found[asked] = np.select(open_still, [latest, root], -1)
    return found


def self_made(runs: pd.DataFrame, generations: int) -> npt.NDArray[np.bool_]:
    """Which runs were scheduled inside a run of the same callback and argument, or, with more
    generations, inside one that was itself scheduled in such a run."""
    parent = ancestor = runs["parent"].to_numpy(np.int64)
    callback, opaque = runs["callback"].to_numpy(), runs["opaque"].to_numpy()
    found = np.zeros(len(runs), np.bool_)
    for _generation in range(generations):
        same = (callback[ancestor] == callback) & (opaque[ancestor] == opaque)
        found |= (ancestor >= 0) & same & (callback != 0)
        ancestor = np.where(ancestor >= 0, parent[ancestor], -1)
    return found


def moment(runs: pd.DataFrame, tid: Numbers, time: Numbers, losses: pd.DataFrame) -> Numbers:
    """For each moment of a thread the run that it was in, as an index into ``runs``; -1 for none,
    or where a run inside that one may have been lost."""
    found = _inside(runs, runs["outer"].to_numpy(np.int64), tid, time)
    at = np.flatnonzero(found >= 0)
    began = runs["time_ns"].to_numpy(np.int64)[found[at]]
    found[at[disturbed(began, time[at], losses)]] = -1
    return found


def keep_busy(runs: pd.DataFrame, tid: int, role: str = "") -> npt.NDArray[np.bool_]:
    """Which runs a thread cannot do anything else meanwhile.

    Args:
        role: of ``main`` these are also what vCPU threads run of its contexts, as they hold the
            BQL inside aio_poll().
    """
    busy = (runs["tid"] == tid).to_numpy()
    if role == "main":
        under_bql = (runs["role"] == "vcpu") & runs["context"].isin(MAIN_CONTEXTS)
        busy = busy | under_bql.to_numpy()
    return busy


def in_the_way(
    runs: pd.DataFrame,
    tid: int,
    since: int,
    until: int,
    context: str | None = None,
    role: str = "",
) -> dict[str, Any] | None:
    """The run that kept a thread busy for half of the time between two times or more, as a row.

    Args:
        context: only runs of this one.
        role: see ``keep_busy``.
    """
    own = keep_busy(runs, tid, role) & (runs["time_ns"] < until).to_numpy()
    own = own & ((runs["end_ns"] > since).to_numpy())
    if context is not None:
        own = own & ((runs["context"] == context).to_numpy())
    busy = runs[own]
    if busy.empty:
        return None
    overlap = busy["end_ns"].clip(upper=until) - busy["time_ns"].clip(lower=since)
    longest = int(overlap.argmax())
    if overlap.iloc[longest] * 2 < until - since:
        return None
    row = busy.iloc[longest]
    return {str(key): row[key] for key in runs.columns}


def find_rows(rows: Numbers, wanted: Numbers) -> tuple[Numbers, Numbers]:
    """Where in ``rows`` each wanted number is: positions there, and which ones were found."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    at = ordered.searchsorted(wanted)
    there = np.flatnonzero(at < len(rows))
    there = there[ordered[at[there]] == wanted[there]]
    return order[at[there]], there


def whole(values: pd.Series) -> Numbers:
    """Integers that may be absent, as int64 with -1 for these."""
    return np.asarray(values.to_numpy(np.int64, na_value=-1), np.int64)


def on_vcpus(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the main thread's contexts inside aio_poll() on vCPU threads.

    Two more columns, of the stack: ``poll`` and ``device``, see ``StackFacts``.
    """
    facts = stack_facts(runs["stack"])
    inside = (runs["role"] == "vcpu").to_numpy() & facts["in_poll"].to_numpy(np.bool_)
    inside = inside & (runs["context"].isin(MAIN_CONTEXTS).to_numpy())
    facts = facts[inside]
    polled: pd.DataFrame = runs[inside]
    return polled.assign(
        poll=facts["deciding_frame"].to_numpy(), device=facts["device_frame"].to_numpy()
    )
