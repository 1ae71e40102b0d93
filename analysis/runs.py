"""Runs of bottom halves: their ends, the runs around them, and those that did not come to an end.

The detach row's ``until_ns`` is the last moment of which all probes tell (trace/edges.py): of a run
without a return nothing is known beyond.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled, find_rows, nullable
from qtrace.analysis.losses import disturbed
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS
from qtrace.analysis.stacks import facts_by_code
from qtrace.analysis.verdicts import LOST
from qtrace.trace.details import detail_column
from qtrace.trace.reader import TraceFile

NEVER = np.iinfo(np.int64).max

COLUMNS = ["time_ns", "row", "tid", "thread", "role", "name", "context", "callback", "opaque",
           "stack"]  # fmt: skip


def runs_of(
    events: pd.DataFrame, durations: pd.DataFrame, instances: pd.DataFrame, losses: pd.DataFrame
) -> pd.DataFrame:
    """The runs of one trace in time order, with (Int64, absent where it is not known):

    * ``end_ns``: when the callback returned;
    * ``instance``: its index in ``instances``;
    * ``scheduled_ns``; absent also where it may have been lost;
    * ``outer``: the outermost run that it is known to lie in, as an index into this frame; absent
      for none;
    * ``parent``: the run that the scheduling thread was in then, likewise; absent for none, and
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
    at, found = find_rows(rows, filled(instances["ended_row"].take(ran)))
    instance[at] = ran[found]
    # Of these the schedule may be another's.
    sure = (instances["reason"].take(ran[found]) != LOST).to_numpy()
    at, found = at[sure], found[sure]
    scheduled = np.full(len(runs), -1, np.int64)
    by = np.full(len(runs), -1, np.int64)
    scheduled[at] = filled(instances["scheduled_ns"].take(ran))[found]
    by[at] = filled(instances["scheduled_by_tid"].take(ran))[found]
    outer = _outermost(runs, end)
    parent = _surely_inside(runs, end, outer, by, scheduled, losses)
    return runs.assign(
        end_ns=nullable(end), instance=nullable(instance), scheduled_ns=nullable(scheduled),
        outer=nullable(outer), parent=nullable(parent),
    )  # fmt: skip


def _outermost(runs: pd.DataFrame, ended: Numbers) -> Numbers:
    """For each run the outermost one that it lies in, -1 where it lies in none."""
    found = np.full(len(runs), -1, np.int64)
    began = runs["time_ns"].to_numpy(np.int64)
    runner = runs["tid"].to_numpy(np.int64)
    for thread in np.unique(runner):
        own = np.flatnonzero(runner == thread)
        until = np.maximum.accumulate(ended[own])
        top = np.ones(len(own), np.bool_)
        top[1:] = began[own[1:]] > until[:-1]
        last = np.maximum.accumulate(np.where(top, np.arange(len(own)), 0))
        found[own] = np.where(top, -1, own[last])
    return found


def _inside(
    runs: pd.DataFrame, ended: Numbers, outer: Numbers, tid: Numbers, time: Numbers
) -> Numbers:
    """For each moment of a thread the run that it was in, -1 for none.

    The one that began last, if it had not ended, else the outermost one: a moment between two
    inner runs of a third, deeper level counts as the outermost's.
    """
    found = np.full(len(tid), -1, np.int64)
    began = runs["time_ns"].to_numpy(np.int64)
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
    parent = ancestor = filled(runs["parent"])
    callback, opaque = runs["callback"].to_numpy(), runs["opaque"].to_numpy()
    found = np.zeros(len(runs), np.bool_)
    for _generation in range(generations):
        same = (callback[ancestor] == callback) & (opaque[ancestor] == opaque)
        found |= (ancestor >= 0) & same & (callback != 0)
        ancestor = np.where(ancestor >= 0, parent[ancestor], -1)
    return found


def run_at(runs: pd.DataFrame, tid: Numbers, time: Numbers, losses: pd.DataFrame) -> Numbers:
    """For each moment of a thread the run that it was in, as an index into ``runs``; -1 for none,
    or where a run inside that one may have been lost."""
    ended, outer = filled(runs["end_ns"]), filled(runs["outer"])
    return _surely_inside(runs, ended, outer, tid, time, losses)


def _surely_inside(
    runs: pd.DataFrame, ended: Numbers, outer: Numbers, tid: Numbers, time: Numbers,
    losses: pd.DataFrame,
) -> Numbers:  # fmt: skip
    found = _inside(runs, ended, outer, tid, time)
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
    own = own & (filled(runs["end_ns"]) > since)
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


def on_vcpus(runs: pd.DataFrame, own: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Of some runs, those of the main thread's contexts inside aio_poll() on vCPU threads.

    Two more columns, of the stack: ``poll`` and ``device``, see ``StackFacts``.
    """
    # By code: of ten million events a row of facts for each run is large.
    facts, codes = facts_by_code(runs["stack"]), runs["stack"].array.codes
    inside = (runs["role"] == "vcpu").to_numpy() & facts["in_poll"].to_numpy(np.bool_)[codes]
    inside = own & inside & runs["context"].isin(MAIN_CONTEXTS).to_numpy()
    polled: pd.DataFrame = runs[inside]
    return polled.assign(
        poll=facts["deciding_frame"].to_numpy()[codes[inside]],
        device=facts["device_frame"].to_numpy()[codes[inside]],
    )


def latest_ends(runs: pd.DataFrame, events: pd.DataFrame) -> Numbers:
    """For each run of ``Frames.runs`` when it ended, or, where no row tells, when it had
    ended at the latest: when its thread ran something that lies no deeper in the stack; ``NEVER``
    where it did not.
    """
    time, tid = runs["time_ns"].to_numpy(np.int64), runs["tid"].to_numpy(np.int64)
    found = filled(runs["end_ns"]).copy()
    unknown = found < 0
    found[unknown] = NEVER
    depth = _depths(events)
    for thread in np.unique(tid[unknown]):
        own = np.flatnonzero(tid == thread)
        for level in np.unique(depth[own[unknown[own]]]):
            outside = np.append(time[own[depth[own] <= level]], NEVER)
            asked = own[unknown[own] & (depth[own] == level)]
            found[asked] = outside[outside.searchsorted(time[asked], side="right")]
    return found


def unfinished(
    runs: pd.DataFrame, ends: Numbers, trace: TraceFile, until: int, losses: pd.DataFrame
) -> pd.Series:
    """The runs of ``Frames.runs`` whose return would have been recorded, and was not.

    Left out are those whose thread ran something outside of them later, and those around which
    events were lost: their return was missed.

    Args:
        ends: what ``latest_ends`` gives.
        until: what ``watched_until`` gives.

    Returns:
        By the run's index, for how many nanoseconds (int64) it provably had not returned; 0 when
        the recording does not tell.
    """
    recorded = "all" in trace.header or runs["name"].isin(trace.header.get("returns", []))
    at = np.flatnonzero((ends == NEVER) & np.asarray(recorded))
    began = runs["time_ns"].to_numpy(np.int64)[at]
    kept = ~disturbed(began, np.maximum(began, until), losses)
    return pd.Series(np.maximum(until - began, 0)[kept], index=at[kept], dtype=np.int64)


def watched_until(trace: TraceFile, latest: tuple[int, int]) -> int:
    """The last moment at which a return would surely have been recorded, 0 when that is unknown.

    Args:
        latest: ``last_moments`` of all events.
    """
    every = trace.detach.get("all")
    dropped = every.get("dropped_ns") if isinstance(every, dict) else None
    known = dropped if type(dropped) is int else trace.detach.get("until_ns")
    if trace.exit is not None:
        # The end of the process was noticed some time after it.
        return latest[0]
    # Of an older recording: as long as there are returns of others.
    return known if type(known) is int else latest[1]


def last_moments(events: pd.DataFrame) -> tuple[int, int]:
    """The times of the last event of a thread, and of the last return; 0 for none."""
    times = events["time_ns"].to_numpy(np.int64)
    own = times[(events["tid"] != 0).to_numpy()]
    returns = times[(events["event"] == "return").to_numpy()]
    return int(own[-1]) if len(own) else 0, int(returns[-1]) if len(returns) else 0


def later(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """``last_moments`` of two parts together."""
    return max(one[0], other[0]), max(one[1], other[1])


def _depths(events: pd.DataFrame) -> Numbers:
    """How many runs lie around each one; 0 where that was not recorded."""
    runs = (events["event"] == "run").to_numpy()
    depths: Numbers = detail_column(events["detail"][runs], "depth", 0)
    return depths
