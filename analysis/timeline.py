"""QMP commands and jobs: what ran on their thread meanwhile, and what waited for its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS
from qtrace.analysis.report_types import Meanwhile, Timeline, TimelineCommand, TimelineJob
from qtrace.analysis.runs import keep_busy

# Of each command and job so many bottom halves are named, those that took or waited longest.
NAMED = 5


def timelines(traces: Sequence[Frames]) -> list[Timeline]:
    """For each trace its ``commands`` and ``jobs``, see analysis/report_types.py."""
    return [
        {
            "path": str(trace.path),
            "began_ns": int(trace.events["time_ns"].iloc[0]),
            "commands": _commands(trace),
            "jobs": _jobs(trace),
        }
        for trace in traces
    ]


def _commands(trace: Frames) -> list[TimelineCommand]:
    """What is absent in ``Frames.commands`` is None."""
    carried = trace.carried_out.set_index("number")
    rows, stops = _Rows(trace), _stops(trace)
    found: list[TimelineCommand] = []
    for one in _records(trace.commands):
        own = carried.loc[one["number"]] if one["number"] in carried.index else None
        until = None if own is None else int(own["until_ns"])
        inside: list[Meanwhile] = []
        before: list[Meanwhile] = []
        waited: list[Meanwhile] = []
        stopped = 0
        seen: list[str] = []
        if own is not None and until is not None and own["sure"]:
            span = (int(own["time_ns"]), until)
            inside = rows.ran(int(own["tid"]), str(own["role"]), *span, begun=span[0])
            waited = rows.waited(str(own["role"]), *span)
            stopped = _overlap(stops, *span)
            seen = _looks(trace, int(own["tid"]), *span)
        if one["ended_ns"] is not None and one["replied_ns"] is not None:
            between = (one["ended_ns"], one["replied_ns"])
            begun = one["begun_ns"] or 0
            before = rows.ran(one["tid"], one["role"], *between, begun=begun)
        found.append(
            {
                "number": one["number"],
                "name": one["name"],
                "tid": one["tid"],
                "thread": one["thread"],
                "role": one["role"],
                "taken_ns": one["taken_ns"],
                "begun_ns": one["begun_ns"],
                "ended_ns": one["ended_ns"],
                "replied_ns": one["replied_ns"],
                "took_ns": None if own is None else int(own["took"]),
                "ended": one["ended_ns"] is not None or one["replied_ns"] is not None,
                "sure": own is None or bool(own["sure"]),
                "inside": inside,
                "before_reply": before,
                "waited": waited,
                "guest_stopped_ns": stopped,
                "looks": seen,
            }
        )
    return found


def _jobs(trace: Frames) -> list[TimelineJob]:
    """From a job's first to its last change of state, or to its conclusion."""
    rows, stops = _Rows(trace), _stops(trace)
    found: list[TimelineJob] = []
    for one in _records(trace.jobs):
        until = one["concluded_ns"] if one["concluded_ns"] is not None else one["last_ns"]
        span = (one["time_ns"], until)
        found.append(
            {
                "name": one["name"],
                "status": one["status"],
                "first_ns": one["time_ns"],
                "created_ns": one["created_ns"],
                "running_ns": one["running_ns"],
                "concluded_ns": one["concluded_ns"],
                "dismissed_ns": one["dismissed_ns"],
                "last_ns": one["last_ns"],
                "inside": rows.ran(_main(trace), "main", *span),
                "guest_stopped_ns": _overlap(stops, *span),
            }
        )
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.drop(columns="wall_clock").astype(object)
    plain = plain.where(plain.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


class _Rows:
    """What runs and instances of a trace are asked for again and again."""

    def __init__(self, trace: Frames) -> None:
        self.runs, self.instances = trace.runs, trace.instances
        self.began = self.runs["time_ns"].to_numpy(np.int64)
        self.ended = np.maximum(filled(self.runs["end_ns"]), self.began)
        self._busy: dict[tuple[int, str], npt.NDArray[np.bool_]] = {}
        self._scheduled = filled(self.instances["scheduled_ns"])
        ended = filled(self.instances["ended_ns"])
        self._ran = np.where(ended < 0, np.iinfo(np.int64).max, ended)
        self._main = self.instances["context"].isin(MAIN_CONTEXTS).to_numpy()

    def ran(self, tid: int, role: str, since: int, until: int, begun: int = 0) -> list[Meanwhile]:
        """The bottom halves that kept a thread between two times, by name: how much of that.

        Args:
            begun: what runs longer than that is not meant: what carries a command out.
        """
        if (tid, role) not in self._busy:
            self._busy[tid, role] = keep_busy(self.runs, tid, role)
        there = self._busy[tid, role] & (self.ended >= since) & (self.began < until)
        there = there & (self.began >= begun)
        between = np.minimum(self.ended, until) - np.maximum(self.began, since)
        return _named(self.runs, there, between)

    def waited(self, role: str, since: int, until: int) -> list[Meanwhile]:
        """The bottom halves of the main contexts that were scheduled before the end of what kept
        the main loop, and ran after it, by name: how long they waited for that."""
        if role != "main":
            return []
        there = self._main & (self._scheduled >= since) & (self._scheduled < until)
        there = there & (self._ran >= until)
        return _named(self.instances, there, until - self._scheduled)


def _named(frame: pd.DataFrame, there: npt.NDArray[np.bool_], lasted: Numbers) -> list[Meanwhile]:
    """Those rows of a frame, by name and kind of thread, the longest first."""
    if not there.any():
        return []
    keys = ["name", "role", "thread"]
    rows = frame[there]
    table = rows[keys].astype(object).assign(lasted=lasted[there], tid=rows["tid"].to_numpy())
    groups = table.groupby(keys, sort=False, dropna=False)
    found = groups.agg(
        count=("lasted", "size"), total=("lasted", "sum"), longest=("lasted", "max"),
        tid=("tid", "first"),
    ).reset_index()  # fmt: skip
    worst = found.sort_values("longest", ascending=False, kind="stable").head(NAMED)
    return [
        {
            "name": str(row["name"]),
            "role": str(row["role"]),
            "thread": str(row["thread"]),
            "tid": None if pd.isna(row["tid"]) else int(row["tid"]),
            "count": int(row["count"]),
            "total_ns": int(row["total"]),
            "longest_ns": int(row["longest"]),
        }
        for row in worst.to_dict("records")
    ]


def _stops(trace: Frames) -> list[tuple[int, int]]:
    """When the guest was stopped, by QMP's events STOP and RESUME."""
    rows = trace.qmp_steps
    rows = rows[(rows["step"] == "event").to_numpy()]
    found: list[tuple[int, int]] = []
    since: int | None = None
    for name, time_ns in zip(rows["name"].astype(str), rows["time_ns"].tolist(), strict=True):
        if name == "STOP":
            since = time_ns if since is None else since
        elif name == "RESUME" and since is not None:
            found.append((since, time_ns))
            since = None
    if since is not None:
        found.append((since, int(trace.events["time_ns"].iloc[-1])))
    return found


def _overlap(stops: list[tuple[int, int]], since: int, until: int) -> int:
    return sum(max(0, min(end, until) - max(begin, since)) for begin, end in stops)


def _looks(trace: Frames, tid: int, since: int, until: int) -> list[str]:
    """What looks showed of the thread meanwhile."""
    return [
        away.sentence
        for away in trace.away
        if away.tid == tid and away.first_ns <= until and away.last_ns >= since
    ]


def _main(trace: Frames) -> int:
    return int(trace.header["target"]["pid"])
