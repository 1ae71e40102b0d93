"""Runs without an end: which of them provably went on, and for how long.

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


def unfinished(runs: pd.DataFrame, trace: Trace, losses: pd.DataFrame) -> pd.Series:
    """The runs of ``AnalysedTrace.runs`` whose return would have been recorded, and was not.

    Left out are those whose thread ran something outside of them later, and those around which
    events were lost: their return was missed.

    Returns:
        By the run's index, for how many nanoseconds (int64) it provably had not returned; 0 when
        the recording does not tell.
    """
    recorded = "all" in trace.header or runs["name"].isin(trace.header.get("returns", []))
    open_still = (runs["end_ns"] < 0).to_numpy() & np.asarray(recorded)
    open_still &= _nothing_outside_later(runs["tid"].to_numpy(np.int64), _depths(trace))
    at = np.flatnonzero(open_still)
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
        return min(known, int(times[-1]))
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


def _nothing_outside_later(tid: Numbers, depth: Numbers) -> npt.NDArray[np.bool_]:
    """For each run whether all later ones of its thread lie deeper in the stack."""
    found = np.ones(len(tid), np.bool_)
    for thread in np.unique(tid):
        own = np.flatnonzero(tid == thread)
        later = np.minimum.accumulate(depth[own][::-1])[::-1]
        found[own[:-1]] = later[1:] > depth[own[:-1]]
    return found
