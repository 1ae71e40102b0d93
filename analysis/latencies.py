"""How long bottom halves waited and ran, of which that is certain."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qtrace.analysis.traces import AnalysedTrace

COLUMNS = ["name", "context", "role"]


def waits(trace: AnalysedTrace) -> pd.DataFrame:
    """``name``, ``context``, ``role`` (who ran it) and ``ns`` (int64), schedule to run."""
    instances = trace.instances
    sure = (instances["end"] == "run").to_numpy() & instances["wait_ns"].notna().to_numpy()
    sure = sure & (instances["verdict"] != "inconclusive").to_numpy()
    found = instances.loc[sure, [*COLUMNS, "wait_ns"]].rename(columns={"wait_ns": "ns"})
    return found.astype({"ns": np.int64})


def durations(trace: AnalysedTrace) -> pd.DataFrame:
    """``name``, ``context``, ``role`` and ``ns`` (int64), start of the callback to its end."""
    runs = trace.runs[(trace.runs["end_ns"] >= 0).to_numpy()]
    return runs[COLUMNS].assign(ns=runs["end_ns"] - runs["time_ns"])
