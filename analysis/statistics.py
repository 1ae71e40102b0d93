"""What every bottom half of an `--all` recording did: how often, how late, how long, and who."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import code_of
from qtrace.analysis.brackets import Mask, Positions, numbered, stable_order, starts_of
from qtrace.analysis.frames import Frames
from qtrace.analysis.report_types import LongRun, Scheduler, Statistics
from qtrace.analysis.stacks import ENDS, functions
from qtrace.analysis.timing import percentiles
from qtrace.analysis.verdicts import LOST

# The longest runs, and the commonest schedulers, of each bottom half.
LONGEST, SCHEDULERS = 3, 5


def summarize(trace: Frames) -> list[Statistics]:
    """Statistics of one trace, the busiest bottom half first.

    Returns:
        For each bottom half and context: ``name``, ``context``, ``scheduled``, ``ran``,
        ``cancelled``, ``coalesced``; ``wait`` (schedule to run) and ``duration``, each p50, p99
        and max in nanoseconds or None; ``roles`` (runs by thread role); ``scheduled_by``
        (caller, the function that scheduled it, empty when unknown; role, thread; threads, how
        many of that name and role did; tid, that of the first; count);
        ``longest`` (duration_ns, time_ns, since_start_ns, row, role, thread, tid, stack). An
        instance during whose life events were lost counts, but has no wait.
    """
    instances, durations = trace.instances, trace.durations
    took = np.full(len(instances), np.nan)
    ended = instances["ended_row"].fillna(-1).to_numpy(np.int64)
    ran = code_of(instances["end"], ("run",)) == 0
    # Rows count up: the run that each duration belongs to is found where it would stand.
    own = np.flatnonzero(ran)
    own = own[np.argsort(ended[own], kind="stable")]
    place = np.searchsorted(ended[own], durations["row"].to_numpy())
    took[own[place]] = durations["duration_ns"]
    work = _Work(instances, ran, took, trace.events["time_ns"].iloc[0])
    group = numbered(instances["name"].array.codes, instances["context"].array.codes)
    order = stable_order(group)
    found = [
        _one(work, rows)
        for rows in np.split(order, np.flatnonzero(starts_of(group[order]))[1:])
        if len(rows)
    ]
    return sorted(found, key=lambda one: -(one["ran"] + one["scheduled"]))


class _Work:
    """The columns that are counted, as arrays."""

    def __init__(
        self, instances: pd.DataFrame, ran: Mask, took: npt.NDArray[np.float64], start_ns: int
    ) -> None:
        self.instances, self.ran, self.took, self.start_ns = instances, ran, took, start_ns
        callers = [_caller(str(text)) for text in instances["scheduled_stack"].cat.categories]
        number, self.callers = pd.factorize(pd.Index(callers, dtype=object))
        self.caller = number[instances["scheduled_stack"].array.codes]
        self.cancelled = code_of(instances["end"], ("cancel", "delete")) >= 0
        self.opened = instances["scheduled_ns"].notna().to_numpy()
        self.coalesced = instances["coalesced"].to_numpy()
        sure = code_of(instances["reason"], (LOST,)) < 0
        wait = instances["wait_ns"].to_numpy(np.float64, na_value=np.nan)
        self.wait = np.where(ran & sure, wait, np.nan)


def _one(work: _Work, rows: Positions) -> Statistics:
    """The rows of one bottom half in one context."""
    first = work.instances.iloc[rows[0]]
    runs = rows[work.ran[rows]]
    roles = work.instances["role"].iloc[runs].value_counts()
    return {
        "name": str(first["name"]),
        "context": str(first["context"]),
        "scheduled": int(work.opened[rows].sum()),
        "ran": len(runs),
        "cancelled": int(work.cancelled[rows].sum()),
        "coalesced": int(work.coalesced[rows].sum()),
        "wait": percentiles(work.wait[rows]),
        "duration": percentiles(work.took[runs]),
        "roles": {str(role): int(count) for role, count in roles.items() if count},
        "scheduled_by": _schedulers(work, rows[work.opened[rows]]),
        "longest": _longest(work, runs),
    }


def _caller(stack: str) -> str:
    """The function that called to schedule it."""
    caller = functions(stack)[:1]
    return caller[0] if caller and caller[0] not in ENDS else ""


def _schedulers(work: _Work, rows: Positions) -> list[Scheduler]:
    """The functions and threads that scheduled most, of those that are known."""
    instances, caller = work.instances, work.caller[rows]
    columns = [instances[f"scheduled_by_{column}"].iloc[rows] for column in ("role", "thread")]
    tid = instances["scheduled_by_tid"].iloc[rows].to_numpy(np.int64)
    group = numbered(caller, *(column.array.codes for column in columns))
    if not len(group):
        return []
    _, first, counts = np.unique(group, return_index=True, return_counts=True)
    pairs = np.unique(np.stack([group, tid]), axis=1)
    threads = np.bincount(pairs[0])
    most = sorted(
        zip(counts.tolist(), first.tolist(), strict=True), key=lambda one: (-one[0], one[1])
    )
    return [
        {
            "caller": str(work.callers[caller[at]]),
            "role": str(columns[0].iloc[at]),
            "thread": str(columns[1].iloc[at]),
            "threads": int(threads[group[at]]),
            "tid": int(tid[at]),
            "count": count,
        }
        for count, at in most[:SCHEDULERS]
    ]


def _longest(work: _Work, runs: Positions) -> list[LongRun]:
    known = runs[~np.isnan(work.took[runs])]
    if len(known) > LONGEST:
        known = known[np.argpartition(-work.took[known], LONGEST)[:LONGEST]]
    known = known[np.lexsort((known, -work.took[known]))]
    columns = ["ended_ns", "ended_row", "role", "thread", "tid", "stack"]
    return [
        {
            "duration_ns": int(work.took[row]),
            "time_ns": int(time),
            "since_start_ns": int(time - work.start_ns),
            "row": int(number),
            "role": str(role),
            "thread": str(thread),
            "tid": int(tid),
            "stack": functions(str(stack)),
        }
        for row, (time, number, role, thread, tid, stack) in zip(
            known, work.instances[columns].iloc[known].astype(object).to_numpy(), strict=True
        )
    ]
