"""How long bottom halves waited and ran, and how often they came: of single ones and of many."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, code_of
from qtrace.analysis.brackets import Mask, Positions, match, numbered, stable_order
from qtrace.analysis.losses import disturbed

# What tells one distribution of times from another.
COLUMNS = ["name", "context", "role"]


def run_durations(events: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Runs of one trace, in time order, to ``row`` and ``duration_ns`` of those that have an end,
    and ``end_row``.

    A pair around which events were lost is left out: the return may be another run's.
    """
    begin, end = returns_of(events)
    pairs = (begin >= 0) & (end >= 0)
    begin, end = begin[pairs], end[pairs]
    times, rows = events["time_ns"].to_numpy(), events["row"].to_numpy()
    return undisturbed(rows[begin], times[begin], times[end], rows[end], losses)


def undisturbed(
    rows: Numbers, began: Numbers, ended: Numbers, end_rows: Numbers, losses: pd.DataFrame
) -> pd.DataFrame:
    """See ``run_durations``."""
    found = pd.DataFrame({"row": rows, "duration_ns": ended - began, "end_row": end_rows})
    return found[~disturbed(began, ended, losses)].reset_index(drop=True)


def returns_of(
    events: pd.DataFrame, left_alone: Positions | None = None
) -> tuple[Numbers, Numbers]:
    """Runs and their returns, as positions; -1 for what is not there.

    The recorder joined each return with its run by the thread and its stack pointer; one that
    it could not join has no callback and ends nothing. A bottom half may run again inside its
    own run (its callback polls): brackets on one thread.

    Args:
        left_alone: these rows are none.
    """
    kind = code_of(events["event"], ("run", "return"))
    if left_alone is not None:
        kind[left_alone] = -1
    bh = events["bh"].to_numpy()
    at = np.flatnonzero((kind >= 0) & (bh != 0) & (events["callback"].to_numpy() != 0))
    group = numbered(events["tid"].to_numpy()[at], bh[at])
    order = stable_order(group)
    at = at[order]
    return match(group[order], kind[at] == 0, at)


def waits(instances: pd.DataFrame, own: Mask) -> pd.DataFrame:
    """``name``, ``context``, ``role`` (who ran it) and ``ns`` (int64), schedule to run, of those of
    some instances of which that is certain."""
    sure = own & (instances["end"] == "run").to_numpy() & instances["wait_ns"].notna().to_numpy()
    sure = sure & (instances["verdict"] != "inconclusive").to_numpy()
    found = instances.loc[sure, [*COLUMNS, "wait_ns"]].rename(columns={"wait_ns": "ns"})
    return found.astype({"ns": np.int64})


def durations(runs: pd.DataFrame, own: Mask) -> pd.DataFrame:
    """``name``, ``context``, ``role`` and ``ns`` (int64), start of the callback to its end, of
    those of some runs whose end is known."""
    ended = runs.loc[own & runs["end_ns"].notna().to_numpy(), [*COLUMNS, "time_ns", "end_ns"]]
    return ended[COLUMNS].assign(ns=(ended["end_ns"] - ended["time_ns"]).astype(np.int64))
