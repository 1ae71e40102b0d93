"""Events of a recording lost at random, declared as the recorders declare it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.trace import details
from qtrace.trace.reader import TraceFile

# How often a recorder reads its counters (qtrace/record/recording.py).
PERIOD_NS = 100_000_000
# Written by qtrace itself: nothing of them is lost.
OWN = ("attach", "lost", "exit", "detach", "blocked")
QMP = ("qmp", "job")


def lose(
    trace: TraceFile, seed: int, share: float = 0.01, burst: int = 1, period_ns: int = PERIOD_NS
) -> TraceFile:
    """The recording as it would be had so many of its events found no room.

    Args:
        burst: so many in a row, as when a ring buffer is full.
        period_ns: how often the counters are read.
    """
    random = np.random.default_rng(seed)
    frame = trace.frame
    # What a look at QEMU's memory wrote has no thread.
    own = frame["event"].isin(OWN).to_numpy() | (frame["tid"] == 0).to_numpy()
    starts = random.random(len(frame)) < share / burst
    gone = np.convolve(starts, np.ones(burst))[: len(frame)] > 0
    gone &= ~own
    about = frame[own & frame["event"].isin(OWN).to_numpy()][["time_ns", "event", "row", "detail"]]
    lost = _lost_rows(trace, gone, int(random.integers(period_ns)), period_ns)
    about = pd.concat([about.astype(object), lost], ignore_index=True)
    counted = [json.loads(text) for text in lost["detail"]]
    total = sum(one["count"] for one in counted if one.get("probes") not in ("steps", "qmp"))
    ending = (about["event"] == "detach").to_numpy()
    about.loc[ending, "detail"] = [
        json.dumps(json.loads(text) | {"lost": total}) for text in about.loc[ending, "detail"]
    ]
    facts = details.file_facts(trace.path, about)
    return replace(
        trace,
        frame=frame[~gone].reset_index(drop=True),
        header=facts.header,
        losses=facts.losses,
        step_losses=facts.step_losses,
        qmp_losses=facts.qmp_losses,
        lost_events=facts.lost_events,
        detach=facts.detach,
    )


def _lost_rows(
    trace: TraceFile, gone: npt.NDArray[np.bool_], phase: int, period: int
) -> pd.DataFrame:
    """A row for each look at the counters that finds a probe's to have moved."""
    frame = trace.frame[gone]
    first = int(trace.frame["time_ns"].iloc[0])
    every = "all" in trace.header
    watched = frame["name"].isin([item["name"] for item in trace.header["watched"]])
    by_watch = watched & frame["event"].isin(("schedule", "run")) | (frame["event"] == "call")
    group = np.where(every & ~by_watch, "all", "watched")
    group = np.where((frame["event"] == "return") & (not every), "steps", group)
    group = np.where(frame["event"].isin(QMP), "qmp", group)
    look = (frame["time_ns"].to_numpy() - first + phase) // period
    counts = pd.Series(group).groupby([look, group, frame["event"].astype(str).to_numpy()]).size()
    rows = []
    for (number, probes, _site), count in counts.items():
        since = first - phase + int(number) * period
        facts = {"count": int(count), "since_ns": since}
        if probes != "watched":
            facts["probes"] = str(probes)
        rows.append((since + period, "lost", 0, json.dumps(facts)))
    return pd.DataFrame(rows, columns=["time_ns", "event", "row", "detail"], dtype=object)
