"""QMP commands that were done and not answered: what ran before the reply could be sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.qmp_rows import qmp_rows
from qtrace.analysis.traces import AnalysedTrace

# From the end of a command to its reply; QEMU takes 0.01 to 0.1 ms when nothing is in the way.
LATE_NS = 10_000_000


def late_replies(traces: Sequence[AnalysedTrace]) -> list[dict[str, Any]]:
    """The commands whose answer existed more than 10 ms before it was sent.

    Returns:
        For each command and what it waited for, the worst first: ``command``, ``count``, and of
        the worst one ``taken_ns`` (its time), ``done_after_ns``, ``replied_after_ns``,
        ``waited_for`` (the bottom half that ran longest in between on the thread that replied,
        empty when none is known), ``ran_ns``, ``thread``, ``role``, ``tid`` (who replied).
    """
    found = [late for trace in traces for late in _late(trace)]
    found.sort(key=lambda late: late["replied_after_ns"] - late["done_after_ns"], reverse=True)
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for late in found:
        kept = worst.setdefault((late["command"], late["waited_for"]), {**late, "count": 0})
        kept["count"] += 1
    return list(worst.values())


def _late(trace: AnalysedTrace) -> list[dict[str, Any]]:
    steps = qmp_rows(trace.events)
    steps = steps[(steps["number"] >= 0).to_numpy()]
    times = steps.pivot_table(index="number", columns="step", values="time_ns", aggfunc="first")
    times = times.reindex(columns=["command", "begin", "end", "reply"])
    times = times.dropna(subset=["end", "reply"]).astype("Int64")
    times = times.loc[(times["reply"] - times["end"]) > LATE_NS]
    if times.empty:
        return []
    sent = steps[(steps["step"] == "reply").to_numpy()]
    replies = {int(reply["number"]): reply for reply in sent.to_dict("records")}
    runs = trace.runs
    began = runs["time_ns"].to_numpy(np.int64)
    ended = np.maximum(runs["end_ns"].to_numpy(np.int64), began)
    late = []
    for one in times.reset_index().to_dict("records"):
        reply = replies[int(one["number"])]
        taken = int(one["begin"] if pd.isna(one["command"]) else one["command"])
        # How much of each run lies between.
        between = np.minimum(ended, int(one["reply"])) - np.maximum(began, int(one["end"]))
        between = np.where(runs["tid"].to_numpy() == reply["tid"], between, 0)
        longest = int(between.argmax()) if len(between) else -1
        known = longest >= 0 and between[longest] > 0
        late.append(
            {
                "command": str(reply["name"]),
                "taken_ns": taken,
                "done_after_ns": int(one["end"]) - taken,
                "replied_after_ns": int(one["reply"]) - taken,
                "waited_for": str(runs["name"].iloc[longest]) if known else "",
                "ran_ns": int(ended[longest] - began[longest]) if known else 0,
                "tid": int(reply["tid"]),
                "thread": str(reply["thread"]),
                "role": str(reply["role"]),
            }
        )
    return late
