"""QMP commands and jobs: what ran on their thread meanwhile, and what waited for its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled
from qtrace.analysis.brackets import Mask
from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS
from qtrace.analysis.report_types import Meanwhile, Timeline, TimelineCommand, TimelineJob
from qtrace.analysis.runs import keep_busy

# Of each command and job so many bottom halves are named, those that took or waited longest.
NAMED = 5
Stops = list[tuple[int, int]]


def timelines(traces: Sequence[Frames]) -> list[Timeline]:
    """For each trace its ``commands`` and ``jobs``, see analysis/report_types.py."""
    return [_timeline(trace.view) for trace in traces]


def _timeline(trace: Frames) -> Timeline:
    beside = _Beside()
    commands = [_Command.of(trace, one, carried, beside) for one, carried in _carried(trace)]
    jobs = [_Job.of(trace, one, beside) for one in _records(trace.jobs)]
    # Gone through once, for all of them.
    fold_all(trace, [beside])
    stops = _stops(trace, beside.end_ns)
    return {
        "path": str(trace.path),
        "began_ns": beside.began_ns,
        "commands": [one.told(stops) for one in commands],
        "jobs": [one.told(stops) for one in jobs],
    }


def _carried(trace: Frames) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The commands (what is absent in ``Frames.commands`` is None), and their rows of
    ``carried_out``."""
    own = {int(row["number"]): row for row in trace.carried_out.to_dict("records")}
    found: list[tuple[dict[str, Any], Any]] = [
        (one, own.get(one["number"])) for one in _records(trace.commands)
    ]
    return found


@dataclass
class _Command:
    """A command, and what it met."""

    one: dict[str, Any]
    carried: dict[str, Any] | None
    span: tuple[int, int] = (0, 0)
    seen: list[str] = field(default_factory=list)
    inside: _Met = field(default_factory=lambda: _Met())
    before: _Met = field(default_factory=lambda: _Met())
    waited: _Met = field(default_factory=lambda: _Met())

    @classmethod
    def of(
        cls, trace: Frames, one: dict[str, Any], carried: dict[str, Any] | None, beside: _Beside
    ) -> _Command:
        found = cls(one, carried)
        if carried is not None and carried["sure"]:
            found.span = since, until = int(carried["time_ns"]), int(carried["until_ns"])
            tid, role = int(carried["tid"]), str(carried["role"])
            found.inside = beside.ran(tid, role, since, until, begun=since)
            if role == "main":
                found.waited = beside.waited(since, until)
            found.seen = _looks(trace, tid, since, until)
        if one["ended_ns"] is not None and one["replied_ns"] is not None:
            between = (one["ended_ns"], one["replied_ns"])
            begun = one["begun_ns"] or 0
            found.before = beside.ran(one["tid"], one["role"], *between, begun=begun)
        return found

    def told(self, stops: Stops) -> TimelineCommand:
        one, carried = self.one, self.carried
        return {
            "number": one["number"],
            "name": one["name"],
            "tid": one["tid"],
            "thread": one["thread"],
            "role": one["role"],
            "taken_ns": one["taken_ns"],
            "begun_ns": one["begun_ns"],
            "ended_ns": one["ended_ns"],
            "replied_ns": one["replied_ns"],
            "took_ns": None if carried is None else int(carried["took"]),
            "ended": one["ended_ns"] is not None or one["replied_ns"] is not None,
            "sure": carried is None or bool(carried["sure"]),
            "inside": self.inside.named(),
            "before_reply": self.before.named(),
            "waited": self.waited.named(),
            "guest_stopped_ns": _overlap(stops, *self.span),
            "looks": self.seen,
        }


@dataclass
class _Job:
    """A job, from its first to its last change of state, or to its conclusion."""

    one: dict[str, Any]
    span: tuple[int, int]
    inside: _Met

    @classmethod
    def of(cls, trace: Frames, one: dict[str, Any], beside: _Beside) -> _Job:
        until = one["concluded_ns"] if one["concluded_ns"] is not None else one["last_ns"]
        span = (one["time_ns"], until)
        return cls(one, span, beside.ran(_main(trace), "main", *span))

    def told(self, stops: Stops) -> TimelineJob:
        one = self.one
        return {
            "name": one["name"],
            "status": one["status"],
            "first_ns": one["time_ns"],
            "created_ns": one["created_ns"],
            "running_ns": one["running_ns"],
            "concluded_ns": one["concluded_ns"],
            "dismissed_ns": one["dismissed_ns"],
            "last_ns": one["last_ns"],
            "inside": self.inside.named(),
            "guest_stopped_ns": _overlap(stops, *self.span),
        }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.drop(columns="wall_clock").astype(object)
    plain = plain.where(plain.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


@dataclass
class _Kind:
    """Bottom halves of one name on threads of one kind and name: how many, how long.

    Attributes:
        first: the place of the first one; tid: its thread, and its place.
    """

    first: int
    count: int = 0
    total: int = 0
    longest: int = 0
    tid: tuple[int, int] | None = None


class _Met:
    """Bottom halves that a command or a job met, by name and kind of thread."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], _Kind] = {}

    def add(self, rows: pd.DataFrame, lasted: Numbers, places: Numbers) -> None:
        """Some more.

        Args:
            rows: of ``runs`` or ``instances``.
            places: their order in the recording.
        """
        if rows.empty:
            return
        keys = ["name", "role", "thread"]
        # As texts: of categories pandas would look at all there are.
        table = rows[keys].astype(object).assign(tid=rows["tid"], lasted=lasted, place=places)
        groups = table.sort_values("place").groupby(keys, sort=False, dropna=False)
        found = groups.agg(
            first=("place", "first"), count=("lasted", "size"), total=("lasted", "sum"),
            longest=("lasted", "max"), tid=("tid", "first"),
        ).reset_index()  # fmt: skip
        for one in found.to_dict("records"):
            key = str(one["name"]), str(one["role"]), str(one["thread"])
            kind = self._kinds.setdefault(key, _Kind(int(one["first"])))
            kind.first = min(kind.first, int(one["first"]))
            kind.count += int(one["count"])
            kind.total += int(one["total"])
            kind.longest = max(kind.longest, int(one["longest"]))
            if not pd.isna(one["tid"]):
                known = (int(one["first"]), int(one["tid"]))
                kind.tid = known if kind.tid is None else min(kind.tid, known)

    def named(self) -> list[Meanwhile]:
        """The longest first."""
        worst = sorted(self._kinds.items(), key=lambda one: (-one[1].longest, one[1].first))
        return [
            {
                "name": name,
                "role": role,
                "thread": thread,
                "tid": None if one.tid is None else one.tid[1],
                "count": one.count,
                "total_ns": one.total,
                "longest_ns": one.longest,
            }
            for (name, role, thread), one in worst[:NAMED]
        ]


@dataclass(frozen=True)
class _Asked:
    """The bottom halves that kept a thread between two times: how much of that.

    Attributes:
        begun: what runs longer than that is not meant: what carries a command out.
    """

    tid: int
    role: str
    since: int
    until: int
    begun: int
    met: _Met


class _Beside:
    """What runs and instances of a recording are asked for again and again.

    Attributes:
        began_ns, end_ns: when its first and its last event were.
    """

    def __init__(self) -> None:
        self.began_ns = self.end_ns = self._runs = 0
        self._ran: list[_Asked] = []
        self._waited: list[tuple[int, int, _Met]] = []

    def ran(self, tid: int, role: str, since: int, until: int, begun: int = 0) -> _Met:
        """See ``_Asked``."""
        asked = _Asked(tid, role, since, until, begun, _Met())
        self._ran.append(asked)
        return asked.met

    def waited(self, since: int, until: int) -> _Met:
        """The bottom halves of the main contexts that were scheduled before the end of what kept
        the main loop, and ran after it: how long they waited for that."""
        met = _Met()
        self._waited.append((since, until, met))
        return met

    def add(self, part: Part) -> None:
        """What is the part's own."""
        times = part.events["time_ns"]
        if not self.end_ns:
            self.began_ns = int(times.iloc[0])
        self.end_ns = int(times.iloc[-1])
        self._add_runs(part)
        self._add_waits(part)

    def _add_runs(self, part: Part) -> None:
        runs = part.runs.take(np.flatnonzero(part.own_runs))
        began = runs["time_ns"].to_numpy(np.int64)
        ended = np.maximum(filled(runs["end_ns"]), began)
        reach = np.maximum.accumulate(ended)
        busy: dict[tuple[int, str], Mask] = {}
        for one in self._ran if len(runs) else ():
            if one.until <= began[0] or one.since > reach[-1]:
                continue
            key = one.tid, one.role
            if key not in busy:
                busy[key] = keep_busy(runs, *key)
            first = int(max(reach.searchsorted(one.since), began.searchsorted(one.begun)))
            last = int(began.searchsorted(one.until))
            there = busy[key][first:last] & (ended[first:last] >= one.since)
            at = first + np.flatnonzero(there)
            lasted = np.minimum(ended[at], one.until) - np.maximum(began[at], one.since)
            one.met.add(runs.take(at), lasted, self._runs + at)
        self._runs += len(runs)

    def _add_waits(self, part: Part) -> None:
        if not self._waited:
            return
        main = part.own & part.instances["context"].isin(MAIN_CONTEXTS).to_numpy()
        own = np.flatnonzero(main & part.instances["scheduled_ns"].notna().to_numpy())
        scheduled = filled(part.instances["scheduled_ns"])[own]
        order = np.argsort(scheduled, kind="stable")
        own, scheduled = own[order], scheduled[order]
        ended = filled(part.instances["ended_ns"])[own]
        ended[ended < 0] = np.iinfo(np.int64).max
        for since, until, met in self._waited:
            first, last = scheduled.searchsorted([since, until]).tolist()
            at = first + np.flatnonzero(ended[first:last] >= until)
            if len(at):
                met.add(part.instances.take(own[at]), until - scheduled[at], part.number[own[at]])


def _stops(trace: Frames, end_ns: int) -> Stops:
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
        found.append((since, end_ns))
    return found


def _overlap(stops: Stops, since: int, until: int) -> int:
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
