"""What every bottom half of an `--all` recording did: how often, how late, how long, and who."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.durations import run_durations
from qtrace.analysis.spread import spread
from qtrace.analysis.stacks import functions
from qtrace.trace.reader import Trace

# The longest runs, and the commonest threads that schedule, of each bottom half.
LONGEST, SCHEDULERS = 3, 5


def is_whole(trace: Trace) -> bool:
    """Whether a recording has every bottom half, not only watched ones."""
    return "all" in trace.header


def summarize(trace: Trace, instances: pd.DataFrame) -> list[dict[str, Any]]:
    """Statistics of one trace, the busiest bottom half first.

    Args:
        instances: what ``classify`` made of it.

    Returns:
        For each bottom half and context: ``name``, ``context``, ``scheduled``, ``ran``,
        ``cancelled``, ``coalesced``; ``wait`` (schedule to run) and ``duration``, each p50, p99
        and max in nanoseconds or None; ``roles`` (runs by thread role); ``scheduled_by``
        (role, thread, tid, count); ``longest`` (duration_ns, time_ns, thread, tid, stack). An
        instance during whose life events were lost counts, but has no wait.
    """
    durations = run_durations(trace.frame, trace.losses)
    known = durations.set_index("row")["duration_ns"]
    ran = (instances["end"] == "run").to_numpy()
    sure = (instances["reason"] != "events were lost during its life").to_numpy()
    work = instances.assign(
        ran=ran,
        cancelled=(instances["end"].isin(("cancel", "delete"))).to_numpy(),
        opened=instances["scheduled_ns"].notna(),
        wait=instances["wait_ns"].where(ran & sure).astype("Float64"),
        duration=instances["ended_row"].where(ran).map(known).astype("Float64"),
    )
    found = [
        _one(str(name), str(context), part)
        for (name, context), part in work.groupby(["name", "context"], observed=True, sort=False)
    ]
    return sorted(found, key=lambda one: -(one["ran"] + one["scheduled"]))


def _one(name: str, context: str, part: pd.DataFrame) -> dict[str, Any]:
    runs = part[part["ran"].to_numpy(np.bool_)]
    roles = runs["role"].astype(str).value_counts()
    return {
        "name": name,
        "context": context,
        "scheduled": int(part["opened"].sum()),
        "ran": len(runs),
        "cancelled": int(part["cancelled"].sum()),
        "coalesced": int(part["coalesced"].sum()),
        "wait": spread(part["wait"].to_numpy(np.float64, na_value=np.nan)),
        "duration": spread(part["duration"].to_numpy(np.float64, na_value=np.nan)),
        "roles": {str(role): int(count) for role, count in roles.items()},
        "scheduled_by": _schedulers(part[part["opened"].to_numpy(np.bool_)]),
        "longest": _longest(runs),
    }


def _schedulers(part: pd.DataFrame) -> list[dict[str, Any]]:
    keys = ["scheduled_by_role", "scheduled_by_thread", "scheduled_by_tid"]
    counts = part.groupby(keys, observed=True).size().reset_index(name="count")
    counts = counts.sort_values("count", ascending=False, kind="stable").head(SCHEDULERS)
    return [
        {"role": str(role), "thread": str(thread), "tid": int(tid), "count": int(count)}
        for role, thread, tid, count in counts.astype(object).to_numpy()
    ]


def _longest(runs: pd.DataFrame) -> list[dict[str, Any]]:
    longest = runs[runs["duration"].notna()].nlargest(LONGEST, "duration")
    columns = ["duration", "ended_ns", "thread", "tid", "stack"]
    return [
        {
            "duration_ns": int(duration),
            "time_ns": int(time),
            "thread": str(thread),
            "tid": int(tid),
            "stack": functions(str(stack)),
        }
        for duration, time, thread, tid, stack in longest[columns].astype(object).to_numpy()
    ]
