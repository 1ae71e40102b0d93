"""QMP commands that were done and not answered: what ran before the reply could be sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.qmp_commands import answered
from qtrace.analysis.report_types import LateReply
from qtrace.analysis.runs import keep_busy

# From the end of a command to its reply; QEMU takes 0.01 to 0.1 ms when nothing is in the way.
LATE_NS = 10_000_000


def late_replies(traces: Sequence[Frames]) -> list[LateReply]:
    """The commands whose answer existed more than 10 ms before it was sent.

    Returns:
        For each command, what it waited for and on which kind of thread, the worst first:
        ``command``, ``count``, and of the worst one ``taken_ns`` (its time), ``done_after_ns``,
        ``replied_after_ns``, ``waited_for`` (the bottom half that ran longest in between on the
        thread that replied, or on a vCPU thread that held the BQL; empty when none is known),
        ``ran_ns`` (in between), ``thread``, ``role``, ``tid`` (who ran it; who replied, when none
        is known).
    """
    found = [late for trace in traces for late in _late(trace)]
    found.sort(key=lambda late: late["replied_after_ns"] - late["done_after_ns"], reverse=True)
    worst: dict[tuple[str, str, str], LateReply] = {}
    for late in found:
        kind = late["command"], late["waited_for"], late["role"]
        kept = worst.setdefault(kind, late)
        if kept is not late:
            kept["count"] += 1
    return list(worst.values())


def _late(trace: Frames) -> list[LateReply]:
    found = answered(trace.commands, trace.qmp_losses)
    found = found[(found["replied_ns"] - found["ended_ns"] > LATE_NS).to_numpy()]
    if found.empty:
        return []
    runs = trace.runs
    began = runs["time_ns"].to_numpy(np.int64)
    ended = np.maximum(filled(runs["end_ns"]), began)
    late: list[LateReply] = []
    for one in found.to_dict("records"):
        done, sent = one["ended_ns"], one["replied_ns"]
        first = one["begun_ns"] if pd.isna(one["taken_ns"]) else one["taken_ns"]
        taken = done if pd.isna(first) else int(first)
        # How much of each run lies between.
        between = np.minimum(ended, sent) - np.maximum(began, done)
        between = np.where(keep_busy(runs, int(one["tid"]), str(one["role"])), between, 0)
        longest = int(between.argmax()) if len(between) else -1
        known = longest >= 0 and between[longest] > 0
        who = runs.iloc[longest] if known else one
        late.append(
            {
                "command": str(one["name"]),
                "count": 1,
                "taken_ns": taken,
                "done_after_ns": done - taken,
                "replied_after_ns": sent - taken,
                "waited_for": str(who["name"]) if known else "",
                "ran_ns": int(between[longest]) if known else 0,
                "tid": int(who["tid"]),
                "thread": str(who["thread"]),
                "role": str(who["role"]),
            }
        )
    return late
