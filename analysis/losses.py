"""Intervals in which events were lost, and what they touch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.trace.reader import TraceFile

Times = npt.NDArray[np.int64]


def disturbed(began: Times, ended: Times, losses: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which of these intervals share a moment with one in which events were lost.

    Args:
        losses: ``since_ns`` and ``until_ns``, as of a ``Trace``.
    """
    if losses.empty:
        return np.zeros(len(began), np.bool_)
    ordered = losses.sort_values("since_ns")
    before = ordered["since_ns"].to_numpy(np.int64).searchsorted(ended, side="right")
    # The latest end among the losses that began before its own end.
    latest = np.maximum.accumulate(ordered["until_ns"].to_numpy(np.int64))
    return np.asarray((before > 0) & (latest[np.maximum(before, 1) - 1] >= began), np.bool_)


def losses_of(trace: TraceFile, watched: bool) -> pd.DataFrame:
    """The losses that concern a bottom half: a watched one has probes of its own."""
    if not watched or "every" not in trace.losses:
        return trace.losses
    return trace.losses[~trace.losses["every"].to_numpy(np.bool_)]


def joined(losses: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The intervals of both."""
    parts = [part for part in (losses, others) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else losses
