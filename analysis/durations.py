"""How long bottom halves ran: each run with the return that ends it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qtrace.analysis.brackets import match, numbered, stable_order
from qtrace.analysis.instances import code_of
from qtrace.analysis.loss import disturbed


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
