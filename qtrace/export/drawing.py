"""What a recording shows in the course of time, as both pictures draw it.

All times are nanoseconds of CLOCK_MONOTONIC; -1 stands for a time, a thread or a number that is not
known. Threads and contexts are positions in ``Drawing.threads`` and ``Drawing.contexts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.held import in_words
from qtrace.analysis.jobs import STATES
from qtrace.analysis.looks import looks_of
from qtrace.analysis.qmp_commands import STEPS
from qtrace.analysis.report_types import Report
from qtrace.analysis.verdicts import SEVERITY
from qtrace.analysis.wording import who
from qtrace.export.groundwork import Groundwork
from qtrace.export.windows import Window, windows_of


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time with a name: a command, a job, a wait, a finding, a loss.

    Attributes:
        begin_ns, end_ns: equal where it is a moment.
        rows: numbers of the rows of the file that prove it.
        tid: the thread that it is about, 0 for none.
        open: it had not ended when the recording did.
        facts: more, as text.
    """

    name: str
    begin_ns: int
    end_ns: int
    rows: tuple[int, ...] = ()
    tid: int = 0
    open: bool = False
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class FindingMark:
    """What the verdict or a lint found, with its place.

    Attributes:
        what: the verdict, or the lint's name.
        at_ns: when it came to light.
        begin_ns, end_ns: of the worst occurrence: the life of its instance, or from the first to
            the last of its rows.
        verdict: it counts for the exit status.
        instance: the number for `qtrace explain`, or None.
    """

    what: str
    name: str
    sentence: str
    at_ns: int
    begin_ns: int
    end_ns: int
    tid: int
    rows: tuple[int, ...]
    verdict: bool
    instance: int | None


class Drawing:
    """One recording.

    Attributes:
        path, header: of its file. events: how many it has.
        wall_clock: the time of day at its beginning, NaT where it is not known.
        ground: what had to be known before.
        commands, jobs, waits, held, losses: stretches, in time order.
        findings: the worst first, as the report has them. Their stretches are known when the
            ``windows`` have been gone through, ``at_ns`` is at once.
    """

    def __init__(self, trace: Frames, report: Report, ground: Groundwork) -> None:
        self._trace, self.ground = trace, ground
        self.path, self.header = str(trace.path), trace.header
        self.events, self.begin_ns, self.end_ns = ground.events, ground.begin_ns, ground.end_ns
        self.wall_clock: pd.Timestamp = trace.wall_clock(pd.Series([self.begin_ns])).iloc[0]
        self.threads = ground.threads()
        self.contexts = tuple(ground.contexts().names)
        self.commands = tuple(_commands(trace))
        self.jobs = tuple(_jobs(trace, self.end_ns))
        self.waits, self.held = tuple(_waits(trace)), tuple(_held(trace))
        self.losses = tuple(_losses(trace, self.begin_ns, self.end_ns))
        self.findings = tuple(_findings(trace, report, self.end_ns))

    def windows(self, with_lives: bool = False) -> Iterator[Window]:
        """What comes by the million, in time order. A long recording is read for it.

        Args:
            with_lives: see ``Window``.
        """
        spans = _Spans(self.findings, self.end_ns)
        yield from windows_of(spans.seen(self._trace.parts()), self.ground, with_lives)
        self.findings = tuple(map(spans.of, self.findings))


def drawing_of(trace: Frames, report: Report, ground: Groundwork | None = None) -> Drawing:
    """Of one recording, with the findings that ``judge_opened`` told of it.

    Args:
        ground: it has been led past that already.

    Raises:
        TraceUnreadable
    """
    view = trace.view
    if ground is None:
        ground = Groundwork()
        fold_all(view, [ground])
    return Drawing(view, report, ground)


def lanes(spans: Iterable[Span | FindingMark]) -> Iterator[tuple[int, Any]]:
    """Each stretch with the first lane that is free at its beginning; they come in time order."""
    free: list[int] = []
    for one in spans:
        lane = next((at for at, until in enumerate(free) if until <= one.begin_ns), len(free))
        if lane == len(free):
            free.append(0)
        free[lane] = max(one.end_ns, one.begin_ns + 1)
        yield lane, one


def _commands(trace: Frames) -> Iterator[Span]:
    lasted = {int(row["begun_row"]): row for row in trace.carried_out.to_dict("records")}
    for one in trace.commands.to_dict("records"):
        steps = {
            step: (int(one[f"{step}_ns"]), int(one[f"{step}_row"]))
            for step in STEPS.values()
            if not pd.isna(one[f"{step}_ns"])
        }
        times = [time for time, _row in steps.values()]
        if "replied" not in steps and "ended" not in steps and "begun" in steps:
            times.append(int(lasted[steps["begun"][1]]["until_ns"]))
        yield Span(
            name=str(one["name"]),
            begin_ns=min(times),
            end_ns=max(times),
            rows=tuple(sorted(row for _time, row in steps.values())),
            tid=int(one["tid"]),
            open="replied" not in steps,
            facts=tuple((step, str(time - min(times))) for step, (time, _row) in steps.items()),
        )


def _jobs(trace: Frames, end_ns: int) -> Iterator[Span]:
    for one in trace.jobs.to_dict("records"):
        rows = [one[f"{state}_row"] for state in STATES.values()]
        gone = not pd.isna(one["dismissed_ns"])
        over = gone or one["status"] in ("concluded", "null")
        yield Span(
            name=str(one["name"]),
            begin_ns=int(one["time_ns"]),
            end_ns=int(one["last_ns"]) if over else end_ns,
            rows=tuple(sorted(int(row) for row in rows if not pd.isna(row))),
            open=not over,
            facts=(("status", str(one["status"])),),
        )


def _waits(trace: Frames) -> Iterator[Span]:
    """What looks at threads showed: loops that did not come back, bottom halves that nobody ran."""
    found = [
        Span(
            name=f"{one.kind}: {one.command or ' < '.join(one.waits) or 'not in its loop'}",
            begin_ns=one.first_ns,
            end_ns=one.over_ns or one.last_ns,
            rows=one.rows,
            tid=one.tid,
            open=one.over_ns is None,
            facts=(("sentence", one.sentence), ("stack", one.stack)),
        )
        for one in trace.away
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for look in looks_of(trace.file):
        if look["name"] or look["callback"]:
            key = tuple(str(look[part]) for part in ("tid", "bh", "callback", "opaque", "waits_at"))
            groups.setdefault(key, []).append(look)
    for looks in groups.values():
        first, last = looks[0], looks[-1]
        found.append(
            Span(
                name=f"blocked: {first['name']}",
                begin_ns=first["time_ns"],
                end_ns=last["time_ns"],
                rows=tuple(look["row"] for look in looks),
                tid=first["tid"],
                open=last["end"],
                facts=(("sentence", last["sentence"]), ("stack", last["stack"])),
            )
        )
    yield from sorted(found, key=lambda one: one.begin_ns)


def _held(trace: Frames) -> Iterator[Span]:
    for one in trace.held:
        yield Span(
            name=f"target {one['why']}",
            begin_ns=one["since_ns"],
            end_ns=one["released_ns"] or one["since_ns"] + one["at_least_ns"],
            rows=tuple(one["rows"]),
            open=one["released_ns"] is None,
            facts=(("sentence", f"the target {in_words(one)}"),),
        )


def _losses(trace: Frames, begin: int, end: int) -> Iterator[Span]:
    kinds = (("events", trace.losses), ("returns", trace.file.step_losses),
             ("QMP steps", trace.file.qmp_losses))  # fmt: skip
    found = [
        Span(
            name=f"{int(count):,} {what} lost",
            # When is not known where rows are missing in the file.
            begin_ns=min(max(int(since), begin), end),
            end_ns=max(min(int(until), end), begin),
        )
        for what, losses in kinds
        for since, until, count in losses[["since_ns", "until_ns", "count"]].to_numpy().tolist()
    ]
    yield from sorted(found, key=lambda one: one.begin_ns)


def _findings(trace: Frames, report: Report, end_ns: int) -> Iterator[FindingMark]:
    path = str(trace.path)
    told: list[FindingMark] = []

    def tell(
        what: str, name: str, sentence: str, times: tuple[int | None, ...], tid: int | None,
        rows: list[int], verdict: bool, instance: int | None,
    ) -> None:  # fmt: skip
        at = next((one for one in times if one is not None), end_ns)
        told.append(
            FindingMark(what, name, sentence, at, at, at, tid or 0, tuple(rows), verdict, instance)
        )

    for away in report["stuck"]:
        if away["evidence"]["trace"] == path:
            tell("stuck", away["command"] or "", away["sentence"], (away["first_ns"],),
                 away["tid"], away["evidence"]["rows"], True, None)  # fmt: skip
    halves = sorted(report["bottom_halves"], key=lambda half: SEVERITY.index(half["verdict"]))
    for half in halves:
        for one in half["findings"]:
            if one["evidence"]["trace"] == path:
                sentence = one.get("sentence") or (
                    f"{half['name']} ran on {who(one['role'], one['thread'], one['tid'] or 0)}"
                )
                tell(one["verdict"], half["name"], sentence, (one["time_ns"], one["scheduled_ns"]),
                     one["tid"], one["evidence"]["rows"], True, one["instance"])  # fmt: skip
    verdicts = {(one.what, one.instance) for one in told}
    for lint in report["lints"]:
        for seen in lint["findings"] if lint["trace"] == path else ():
            # The lint of a verdict's name says the same.
            if (lint["lint"], seen["instance"]) not in verdicts:
                tell(lint["lint"], seen["name"], seen["sentence"], (seen["time_ns"],),
                     seen["tid"], seen["evidence"]["rows"], False, seen["instance"])  # fmt: skip
    yield from told


class _Spans:
    """When rows, or instances, begin and end: of what findings name."""

    def __init__(self, findings: Iterable[FindingMark], end_ns: int) -> None:
        some = list(findings)
        rows = {row for one in some if one.instance is None for row in one.rows}
        numbers = {one.instance for one in some if one.instance is not None}
        self._rows, self._numbers = (np.array(sorted(found), np.int64) for found in (rows, numbers))
        self._end_ns = end_ns
        self._times: dict[int, int] = {}
        self._lives: dict[int, list[int]] = {}

    def seen(self, parts: Iterable[Part]) -> Iterator[Part]:
        """A recording that is read for something else, too."""
        for part in parts:
            self._see(part)
            yield part

    def _see(self, part: Part) -> None:
        events = part.events.iloc[part.first_event :]
        one = events[["row", "time_ns"]].take(_at(events["row"].to_numpy(), self._rows))
        self._times |= dict(zip(one["row"].tolist(), one["time_ns"].tolist(), strict=True))
        own = _at(part.number, self._numbers)
        own = own[part.own[own]]
        columns = (filled(part.instances[name].take(own)) for name in ("scheduled_ns", "ended_ns"))
        # One that is pending for good lasts to the end.
        still = (part.instances["end"].take(own) == "").to_numpy()
        for number, *times, open_still in zip(part.number[own], *columns, still, strict=True):
            life = [int(time) for time in times if time >= 0]
            self._lives[int(number)] = [*life, self._end_ns] if open_still else life
        instance = filled(part.runs["instance"])
        of_them = np.zeros(len(part.number) + 1, np.bool_)
        of_them[own] = True
        ran = np.flatnonzero(of_them[instance])
        ends = filled(part.runs["end_ns"].take(ran))
        for number, end in zip(part.number[instance[ran]].tolist(), ends.tolist(), strict=True):
            if end >= 0:
                self._lives[number].append(end)

    def of(self, one: FindingMark) -> FindingMark:
        """With its stretch of time."""
        if one.instance is None:
            times = [self._times[row] for row in one.rows if row in self._times]
        else:
            times = self._lives.get(one.instance, [])
        times = times or [self._end_ns]
        return replace(one, begin_ns=min(times), end_ns=max(times))


def _at(values: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.flatnonzero(np.isin(values, wanted))
