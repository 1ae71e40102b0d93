"""How long bottom halves ran: each run with the return that ends it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.brackets import match, numbered, stable_order
from qtrace.analysis.instances import code_of

Times = npt.NDArray[np.int64]


def run_durations(frame: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Runs of one trace, in time order, to ``row`` and ``duration_ns`` of those that have an end.

    The recorder joined each return with its run by the thread and its stack pointer; one that
    it could not join has no callback and ends nothing. A bottom half may run again inside its
    own run (its callback polls): brackets on one thread. A pair around which events were lost
    is left out: the return may be another run's.
    """
    kind = code_of(frame["event"], ("run", "return"))
    bh = frame["bh"].to_numpy()
    at = np.flatnonzero((kind >= 0) & (bh != 0) & (frame["callback"].to_numpy() != 0))
    group = numbered(frame["tid"].to_numpy()[at], bh[at])
    order = stable_order(group)
    at = at[order]
    begin, end = match(group[order], kind[at] == 0, at)
    pairs = (begin >= 0) & (end >= 0)
    begin, end = begin[pairs], end[pairs]
    times = frame["time_ns"].to_numpy()
    began, ended = times[begin], times[end]
    found = pd.DataFrame({"row": frame["row"].to_numpy()[begin], "duration_ns": ended - began})
    return found[~disturbed(began, ended, losses)].reset_index(drop=True)


def disturbed(began: Times, ended: Times, losses: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which of these intervals overlap one in which events were lost."""
    if losses.empty:
        return np.zeros(len(began), dtype=np.bool_)
    ordered = losses.sort_values("since_ns")
    before = ordered["since_ns"].to_numpy(np.int64).searchsorted(ended, side="right")
    # The latest end among the losses that began before this ended.
    latest = np.maximum.accumulate(ordered["until_ns"].to_numpy(np.int64))
    return np.asarray((before > 0) & (latest[np.maximum(before, 1) - 1] >= began), dtype=np.bool_)
