"""QMP commands that were done and not answered: what ran before the reply could be sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.durations import run_durations
from qtrace.trace.reader import Trace

# From the end of a command to its reply; QEMU takes 0.01 to 0.1 ms when nothing is in the way.
LATE_NS = 10_000_000


def late_replies(traces: list[Trace]) -> list[dict[str, Any]]:
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


def _late(trace: Trace) -> list[dict[str, Any]]:
    frame = trace.frame
    rows = frame[frame["event"] == "qmp"]
    if rows.empty:
        return []
    detail = rows["detail"].astype(str)
    steps = rows.assign(
        step=detail.str.extract(r'"step":"(\w+)"', expand=False),
        number=detail.str.extract(r'"number":(\d+)', expand=False),
    ).dropna(subset=["number"])
    times = steps.pivot_table(index="number", columns="step", values="time_ns", aggfunc="first")
    times = times.reindex(columns=["command", "begin", "end", "reply"])
    times = times.dropna(subset=["end", "reply"]).astype("Int64")
    times = times.loc[(times["reply"] - times["end"]) > LATE_NS]
    replies = {
        str(reply["number"]): reply for reply in steps[steps["step"] == "reply"].to_dict("records")
    }
    runs = frame[frame["event"] == "run"]
    took = run_durations(frame, trace.losses).set_index("row")["duration_ns"]
    lasted = runs["row"].map(took).fillna(0).to_numpy(np.int64)
    late = []
    for one in times.reset_index().to_dict("records"):
        reply = replies[str(one["number"])]
        taken = int(one["begin"] if pd.isna(one["command"]) else one["command"])
        # How much of each run lies between.
        began = runs["time_ns"].to_numpy(np.int64)
        between = np.minimum(began + lasted, int(one["reply"])) - np.maximum(began, int(one["end"]))
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
                "ran_ns": int(lasted[longest]) if known else 0,
                "tid": int(reply["tid"]),
                "thread": str(reply["thread"]),
                "role": str(reply["role"]),
            }
        )
    return late
