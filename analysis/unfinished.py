"""Runs without an end: when they had ended at the latest, or for how long they provably went on.

When a recording ends its probes go off one after the other, those on returns before those on
runs, which takes a fifth of a second: a run without a return need not have lasted. The detach
row's ``until_ns`` is when the first one went off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.loss import disturbed
from qtrace.trace.reader import Trace

Numbers = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).max


def latest_ends(runs: pd.DataFrame, trace: Trace) -> Numbers:
    """For each run of ``AnalysedTrace.runs`` when it ended, or, where no row tells, when it had
    ended at the latest: when its thread ran something that lies no deeper in the stack; ``NEVER``
    where it did not.
    """
    time, tid = runs["time_ns"].to_numpy(np.int64), runs["tid"].to_numpy(np.int64)
    found = runs["end_ns"].to_numpy(np.int64).copy()
    unknown = found < 0
    found[unknown] = NEVER
    depth = _depths(trace)
    for thread in np.unique(tid[unknown]):
        own = np.flatnonzero(tid == thread)
        for level in np.unique(depth[own[unknown[own]]]):
            outside = np.append(time[own[depth[own] <= level]], NEVER)
            asked = own[unknown[own] & (depth[own] == level)]
            found[asked] = outside[outside.searchsorted(time[asked], side="right")]
    return found


def unfinished(runs: pd.DataFrame, ends: Numbers, trace: Trace, losses: pd.DataFrame) -> pd.Series:
    """The runs of ``AnalysedTrace.runs`` whose return would have been recorded, and was not.

    Left out are those whose thread ran something outside of them later, and those around which
    events were lost: their return was missed.

    Args:
        ends: what ``latest_ends`` gives.

    Returns:
        By the run's index, for how many nanoseconds (int64) it provably had not returned; 0 when
        the recording does not tell.
    """
    recorded = "all" in trace.header or runs["name"].isin(trace.header.get("returns", []))
    at = np.flatnonzero((ends == NEVER) & np.asarray(recorded))
    began = runs["time_ns"].to_numpy(np.int64)[at]
    until = watched_until(trace)
    kept = ~disturbed(began, np.maximum(began, until), losses)
    return pd.Series(np.maximum(until - began, 0)[kept], index=at[kept], dtype=np.int64)


def watched_until(trace: Trace) -> int:
    """The last moment at which a return would surely have been recorded, 0 when that is unknown."""
    every = trace.detach.get("all")
    dropped = every.get("dropped_ns") if isinstance(every, dict) else None
    known = dropped if type(dropped) is int else trace.detach.get("until_ns")
    times = trace.frame["time_ns"].to_numpy(np.int64)
    if trace.exit is not None:
        # The end of the process was noticed some time after it.
        own = times[(trace.frame["tid"] != 0).to_numpy()]
        return int(own[-1]) if len(own) else 0
    if type(known) is int:
        return known
    # Of an older recording: as long as there are returns of others.
    returns = times[(trace.frame["event"] == "return").to_numpy()]
    return int(returns[-1]) if len(returns) else 0


def _depths(trace: Trace) -> Numbers:
    """How many runs lie around each one; 0 where that was not recorded."""
    detail = trace.frame["detail"].array
    texts = detail.categories.astype(object)
    depth = texts.str.extract(r'"depth":(\d+)', expand=False) if len(texts) else texts
    table = np.append(pd.to_numeric(depth).fillna(0).to_numpy(np.int64), 0)
    found: Numbers = table[detail.codes[(trace.frame["event"] == "run").to_numpy()]]
    return found
