"""How long bottom halves ran: each run with the return that ends it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Times = npt.NDArray[np.int64]


def run_durations(frame: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Runs of one trace, in time order, to ``row`` and ``duration_ns`` of those that have an end.

    The recorder joined each return with its run by the thread and its stack pointer; one that
    it could not join has no callback and ends nothing. A bottom half may run again inside its
    own run (its callback polls): brackets on one thread. A pair around which events were lost
    is left out: the return may be another run's.
    """
    known = (frame["bh"] != 0) & (frame["callback"] != 0)
    events = frame[frame["event"].isin(("run", "return")).to_numpy() & known.to_numpy()]
    opens = (events["event"] == "run").to_numpy()
    work = pd.DataFrame(
        {
            "group": events.groupby(["tid", "bh"], sort=False).ngroup().to_numpy(),
            "time": events["time_ns"].to_numpy(np.int64),
            "row": events["row"].to_numpy(np.int64),
            "opens": opens,
        }
    )
    level = pd.Series(np.where(opens, 1, -1)).groupby(work["group"]).cumsum()
    work = work.assign(level=level + ~opens, position=np.arange(len(work)))
    work = work.sort_values(["group", "level", "position"], kind="stable")
    same = (work["group"].diff() == 0) & (work["level"].diff() == 0)
    ends = (same & ~work["opens"] & work["opens"].shift(1, fill_value=False)).to_numpy(np.bool_)
    times = work["time"].to_numpy()
    at = np.flatnonzero(ends)
    began, ended = times[at - 1], times[at]
    found = pd.DataFrame({"row": work["row"].to_numpy()[at - 1], "duration_ns": ended - began})
    return found[~_disturbed(began, ended, losses)].reset_index(drop=True)


def _disturbed(began: Times, ended: Times, losses: pd.DataFrame) -> npt.NDArray[np.bool_]:
    disturbed = np.zeros(len(began), np.bool_)
    for since, until in losses[["since_ns", "until_ns"]].to_numpy(np.int64):
        disturbed |= (began <= until) & (ended >= since)
    return disturbed
