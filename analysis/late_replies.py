"""QMP commands that were done and not answered: what ran before the reply could be sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.qmp_commands import answered
from qtrace.analysis.report_types import LateReply
from qtrace.analysis.runs import keep_busy

# From the end of a command to its reply; QEMU takes 0.01 to 0.1 ms when nothing is in the way.
LATE_NS = 10_000_000


class LateReplies:
    """The commands of one recording whose answer existed more than 10 ms before it was sent."""

    def __init__(self, trace: Frames) -> None:
        found = answered(trace.commands, trace.qmp_losses)
        late = found[(found["replied_ns"] - found["ended_ns"] > LATE_NS).to_numpy()]
        self._late = late.to_dict("records")
        # Of each what ran longest in between, and for how long.
        self._longest: dict[int, tuple[int, dict[Any, Any]]] = {}

    def add(self, part: Part) -> None:
        """What the part's own runs have of it."""
        if not self._late:
            return
        runs = part.runs[part.own_runs]
        began = runs["time_ns"].to_numpy(np.int64)
        ended = np.maximum(filled(runs["end_ns"]), began)
        latest = np.maximum.accumulate(ended)
        for number, one in enumerate(self._late):
            done, sent = one["ended_ns"], one["replied_ns"]
            first, last = latest.searchsorted(done, side="right"), began.searchsorted(sent)
            if first >= last:
                continue
            some = runs.iloc[first:last]
            # How much of each run lies between.
            between = np.minimum(ended[first:last], sent) - np.maximum(began[first:last], done)
            busy = keep_busy(some, int(one["tid"]), str(one["role"]))
            between = np.where(busy, between, 0)
            longest = int(between.argmax())
            if between[longest] > self._longest.get(number, (0, {}))[0]:
                who = some.iloc[longest].to_dict()
                self._longest[number] = int(between[longest]), who

    def end(self) -> list[LateReply]:
        """One for each."""
        return [self._told(number, one) for number, one in enumerate(self._late)]

    def _told(self, number: int, one: dict[Any, Any]) -> LateReply:
        done, sent = one["ended_ns"], one["replied_ns"]
        first = one["begun_ns"] if pd.isna(one["taken_ns"]) else one["taken_ns"]
        taken = done if pd.isna(first) else int(first)
        ran_ns, run = self._longest.get(number, (0, None))
        who = one if run is None else run
        return {
            "command": str(one["name"]),
            "count": 1,
            "taken_ns": taken,
            "done_after_ns": done - taken,
            "replied_after_ns": sent - taken,
            "waited_for": "" if run is None else str(run["name"]),
            "ran_ns": ran_ns,
            "tid": int(who["tid"]),
            "thread": str(who["thread"]),
            "role": str(who["role"]),
        }


def late_replies(traces: Iterable[Frames]) -> list[LateReply]:
    """See ``worst_of_each_kind``."""
    folds = []
    for trace in traces:
        folds.append(LateReplies(trace))
        fold_all(trace, folds[-1:])
    return worst_of_each_kind([late for fold in folds for late in fold.end()])


def worst_of_each_kind(found: list[LateReply]) -> list[LateReply]:
    """For each command, what it waited for and on which kind of thread, the worst first.

    Returns:
        ``command``, ``count``, and of the worst one ``taken_ns`` (its time), ``done_after_ns``,
        ``replied_after_ns``, ``waited_for`` (the bottom half that ran longest in between on the
        thread that replied, or on a vCPU thread that held the BQL; empty when none is known),
        ``ran_ns`` (in between), ``thread``, ``role``, ``tid`` (who ran it; who replied, when none
        is known).
    """
    found.sort(key=lambda late: late["replied_after_ns"] - late["done_after_ns"], reverse=True)
    worst: dict[tuple[str, str, str], LateReply] = {}
    for late in found:
        kind = late["command"], late["waited_for"], late["role"]
        kept = worst.setdefault(kind, late)
        if kept is not late:
            kept["count"] += 1
    return list(worst.values())
