"""What a recording shows in the course of time, as both pictures draw it.

All times are nanoseconds of CLOCK_MONOTONIC; -1 stands for a time, a thread or a number that is not
known. Threads and contexts are positions in ``Drawing.threads`` and ``Drawing.contexts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers, code_of, filled, find_rows
from qtrace.analysis.brackets import match
from qtrace.analysis.frames import Frames
from qtrace.analysis.held import in_words
from qtrace.analysis.instances import UNSEEN
from qtrace.analysis.jobs import STATES
from qtrace.analysis.looks import looks_of
from qtrace.analysis.qmp_commands import STEPS
from qtrace.analysis.report_types import Report
from qtrace.analysis.stacks import facts_by_code
from qtrace.analysis.verdicts import LOST, SEVERITY
from qtrace.analysis.wording import who
from qtrace.knowledge import WITHOUT_MAIN_LOOP
from qtrace.roles import ORDER

Counts = tuple[Numbers, npt.NDArray[np.int32]]
# Moments of a thread that are drawn as such, in the order of their codes.
MARKS = ("schedule", "co_schedule", "cancel", "delete", "call")
VERDICTS = pd.CategoricalDtype(list(SEVERITY), ordered=True)


@dataclass(frozen=True, slots=True)
class Thread:
    """A lane: a thread that ran, scheduled or called something, or was seen to wait."""

    tid: int
    name: str
    role: str


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
        begin_ns, end_ns: of the worst occurrence: the life of its instance, or from the first to
            the last of its rows.
        verdict: it counts for the exit status.
        instance: the number for `qtrace explain`, or None.
    """

    what: str
    name: str
    sentence: str
    begin_ns: int
    end_ns: int
    tid: int
    rows: tuple[int, ...]
    verdict: bool
    instance: int | None


@dataclass(frozen=True)
class Drawing:
    """One recording.

    Attributes:
        path, header: of its file. events: how many it has.
        wall_clock: the time of day at its beginning, NaT where it is not known.
        runs: a row per run, in time order: ``begin_ns``, ``end_ns``, ``thread``, ``name``,
            ``context``, ``verdict`` (categories; empty where no instance is known), ``stack``,
            ``row``, ``instance``, ``opaque``, ``wait_ns``, ``poll`` (nested: its stack shows the
            aio_poll() that ran it) and ``open`` (it had not returned).
        marks: a row per moment: ``time_ns``, ``kind`` (a position in ``MARKS``), ``thread``,
            ``name``, ``context``, ``stack``, ``row``, and of a schedule the ``instance`` that it
            began.
        pending: of each context the moments at which the number of pending bottom halves changed,
            ``time_ns`` and ``count`` (after it). Counted are those of which the schedule was seen,
            and the end too, or that they were pending when the recording ended.
        commands, jobs, waits, held, losses: stretches, in time order.
        findings: the worst first, as the report has them.
    """

    path: str
    header: dict[str, Any]
    wall_clock: pd.Timestamp
    events: int
    begin_ns: int
    end_ns: int
    threads: tuple[Thread, ...]
    contexts: tuple[str, ...]
    runs: pd.DataFrame
    marks: pd.DataFrame
    pending: tuple[Counts, ...]
    commands: tuple[Span, ...]
    jobs: tuple[Span, ...]
    waits: tuple[Span, ...]
    held: tuple[Span, ...]
    losses: tuple[Span, ...]
    findings: tuple[FindingMark, ...]


def drawing_of(trace: Frames, report: Report) -> Drawing:
    """Of one recording, with the findings that ``judge_opened`` told of it.

    Raises:
        TraceUnreadable
    """
    events = trace.events
    times = events["time_ns"].to_numpy(np.int64)
    end_ns = int(times[-1])
    threads = _threads(trace)
    place = {one.tid: number for number, one in enumerate(threads)}
    contexts = _Contexts()
    runs = _runs(trace, place, contexts)
    marks = _marks(trace, place, contexts)
    pending = _pending(trace, contexts)
    return Drawing(
        path=str(trace.path),
        header=trace.header,
        wall_clock=trace.wall_clock(events["time_ns"].iloc[:1]).iloc[0],
        events=len(events),
        begin_ns=int(times[0]),
        end_ns=end_ns,
        threads=threads,
        contexts=tuple(contexts.names),
        runs=runs,
        marks=marks,
        pending=pending,
        commands=tuple(_commands(trace)),
        jobs=tuple(_jobs(trace, end_ns)),
        waits=tuple(_waits(trace)),
        held=tuple(_held(trace)),
        losses=tuple(_losses(trace)),
        findings=tuple(_findings(trace, report, end_ns)),
    )


def nested(begin: Numbers, end: Numbers, group: Numbers) -> npt.NDArray[np.bool_]:
    """Which stretches can be drawn one inside the other: inside its group none crosses another.

    They come in order of their beginning; what has no end, or none after its beginning, is False.
    """
    at = np.flatnonzero(end > begin)
    keep = np.zeros(len(begin), np.bool_)
    if not len(at):
        return keep
    opens = np.repeat([True, False], len(at))
    which = np.concatenate([at, at])
    time = np.concatenate([begin[at], end[at]])
    length = (end - begin)[which]
    # At one time what ends comes first, the shorter before the longer; then what begins, the
    # longer before the shorter.
    order = np.lexsort((np.where(opens, -length, length), opens, time, group[which]))
    first, last = match(group[which][order], opens[order], which[order])
    keep[first[(first == last) & (first >= 0)]] = True
    return keep


def lanes(spans: Iterable[Span | FindingMark]) -> Iterator[tuple[int, Any]]:
    """Each stretch with the first lane that is free at its beginning; they come in time order."""
    free: list[int] = []
    for one in spans:
        lane = next((at for at, until in enumerate(free) if until <= one.begin_ns), len(free))
        if lane == len(free):
            free.append(0)
        free[lane] = max(one.end_ns, one.begin_ns + 1)
        yield lane, one


class _Contexts:
    """The names of AioContexts as they occur; one without a name goes by its address."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._known: dict[str, int] = {}

    def codes(self, context: pd.Series, ctx: pd.Series) -> npt.NDArray[np.int16]:
        """The position of each row's context."""
        codes = context.array.codes
        table = np.full(len(context.cat.categories) + 1, -1, np.int16)
        for code in np.unique(codes).tolist():
            if code >= 0 and (name := str(context.cat.categories[code])):
                table[code] = self._code(name)
        found: npt.NDArray[np.int16] = table[codes]
        unnamed = np.flatnonzero(found < 0)
        number, addresses = pd.factorize(ctx.to_numpy()[unnamed])
        own = [self._code(f"{one:#x}" if one else "unknown context") for one in addresses.tolist()]
        if own:
            found[unnamed] = np.array(own, np.int16)[number]
        return found

    def _code(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = len(self.names)
            self.names.append(name)
        return self._known[name]


def _threads(trace: Frames) -> tuple[Thread, ...]:
    events, instances = trace.events, trace.instances
    last = events[["tid", "thread", "role"]].drop_duplicates("tid", keep="last")
    ran = instances[["tid", "role"]][(instances["end"] == "run").to_numpy()]
    # A stack may have shown more than the recorder knew.
    better = ran.drop_duplicates("tid", keep="last")
    roles = dict(zip(better["tid"].tolist(), better["role"].astype(object), strict=True))
    found = [
        Thread(tid, str(name), str(roles.get(tid, role)))
        for tid, name, role in last.astype(object).to_numpy().tolist()
        if tid
    ]
    return tuple(sorted(found, key=lambda one: (ORDER.index(one.role), one.tid)))


def _runs(trace: Frames, place: dict[int, int], contexts: _Contexts) -> pd.DataFrame:
    runs, instances = trace.runs, trace.instances
    begin = runs["time_ns"].to_numpy(np.int64)
    end = filled(runs["end_ns"]).copy()
    still = trace.unfinished
    at = still.index.to_numpy(np.int64)
    is_open = np.zeros(len(runs), np.bool_)
    is_open[at] = True
    lasted = still.to_numpy(np.int64)
    end[at] = np.where(lasted > 0, begin[at] + lasted, -1)
    instance = filled(runs["instance"])
    # The categories are those of SEVERITY; the last place stands for none.
    verdict = np.append(instances["verdict"].array.codes, np.int8(-1))[instance]
    scheduled = filled(runs["scheduled_ns"])
    facts = facts_by_code(runs["stack"])
    polled = (facts["dispatcher"] == "poll").to_numpy()[runs["stack"].array.codes]
    # An IOThread's loop, and qemu-img's, is a poll itself.
    polled = polled & (runs["role"] != "iothread").to_numpy()
    if trace.header["target"].get("program") in WITHOUT_MAIN_LOOP:
        polled = np.zeros(len(runs), np.bool_)
    return pd.DataFrame(
        {
            "begin_ns": begin,
            "end_ns": end,
            "thread": _places(runs["tid"], place),
            "name": runs["name"].array,
            "context": contexts.codes(runs["context"], _ctx_of(runs, instances, instance)),
            "verdict": pd.Categorical.from_codes(verdict, dtype=VERDICTS),
            "stack": runs["stack"].array,
            "row": _narrow(runs["row"].to_numpy(np.int64)),
            "instance": _narrow(instance),
            "opaque": runs["opaque"].to_numpy(),
            "wait_ns": np.where(scheduled < 0, -1, np.maximum(begin - scheduled, 0)),
            "poll": polled,
            "open": is_open,
        },
        copy=False,
    )


def _ctx_of(runs: pd.DataFrame, instances: pd.DataFrame, instance: Numbers) -> pd.Series:
    """The address of each run's context."""
    return pd.Series(np.append(instances["ctx"].to_numpy(), np.uint64(0))[instance], runs.index)


def _places(tids: pd.Series, place: dict[int, int]) -> npt.NDArray[np.int32]:
    """The position of each row's thread, -1 for none."""
    number, known = pd.factorize(tids.to_numpy())
    return np.array([place.get(tid, -1) for tid in known.tolist()], np.int32)[number]


def _marks(trace: Frames, place: dict[int, int], contexts: _Contexts) -> pd.DataFrame:
    events, instances = trace.events, trace.instances
    kind = code_of(events["event"], MARKS)
    at = np.flatnonzero(kind >= 0)
    # Column by column: of ten million events each one is large.
    row = events["row"].to_numpy(np.int64)[at]
    time = events["time_ns"].to_numpy(np.int64)[at]
    instance = np.full(len(at), -1, np.int64)
    begun = np.flatnonzero(instances["scheduled_row"].notna().to_numpy())
    found, which = find_rows(row, filled(instances["scheduled_row"].take(begun)))
    instance[found] = begun[which]
    # One that another thread ran before it was noted had been scheduled by then.
    time[found] = np.minimum(time[found], filled(instances["scheduled_ns"].take(begun))[which])
    return pd.DataFrame(
        {
            "time_ns": time,
            "kind": kind[at],
            "thread": _places(events["tid"].take(at), place),
            "name": events["name"].array.take(at),
            "context": contexts.codes(events["context"].take(at), events["ctx"].take(at)),
            "stack": events["stack"].array.take(at),
            "row": _narrow(row),
            "instance": _narrow(instance),
        },
        copy=False,
    )


def _narrow(numbers: Numbers) -> npt.NDArray[np.signedinteger[Any]]:
    """Numbers of rows, or of instances, in half the room where they fit."""
    fit = int(numbers.max(initial=0)) <= np.iinfo(np.int32).max
    return numbers.astype(np.int32) if fit else numbers


def _pending(trace: Frames, contexts: _Contexts) -> tuple[Counts, ...]:
    instances = trace.instances
    where = contexts.codes(instances["context"], instances["ctx"])
    begin, end = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
    still = code_of(instances["end"], ("",)) == 0
    known = code_of(instances["end"], (UNSEEN,)) < 0
    known &= ~(still & (code_of(instances["reason"], (LOST,)) == 0)) & (begin >= 0)
    return tuple(
        _counts(begin[own], np.maximum(end[own], begin[own])[~still[own]])
        for own in (np.flatnonzero(known & (where == code)) for code in range(len(contexts.names)))
    )


def _counts(up: Numbers, down: Numbers) -> Counts:
    """When a number that rises and falls by one changes, and what it is then."""
    time = np.concatenate([up, down])
    order = np.argsort(time, kind="stable")
    time = time[order]
    count = np.cumsum(np.where(order < len(up), 1, -1).astype(np.int32), dtype=np.int32)
    del order
    last = np.append(time[1:] != time[:-1], True)[: len(time)]
    return time[last], count[last]


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


def _losses(trace: Frames) -> Iterator[Span]:
    times = trace.events["time_ns"]
    begin, end = int(times.iloc[0]), int(times.iloc[-1])
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
    told: list[tuple[str, str, str, int, list[int], bool, int | None]] = []
    for away in report["stuck"]:
        if away["evidence"]["trace"] == path:
            told.append(("stuck", away["command"] or "", away["sentence"], away["tid"],
                         away["evidence"]["rows"], True, None))  # fmt: skip
    halves = sorted(report["bottom_halves"], key=lambda half: SEVERITY.index(half["verdict"]))
    for half in halves:
        for one in half["findings"]:
            if one["evidence"]["trace"] == path:
                sentence = one.get("sentence") or (
                    f"{half['name']} ran on {who(one['role'], one['thread'], one['tid'] or 0)}"
                )
                told.append((one["verdict"], half["name"], sentence, one["tid"] or 0,
                             one["evidence"]["rows"], True, one["instance"]))  # fmt: skip
    for lint in report["lints"]:
        if lint["trace"] == path:
            told += [
                (lint["lint"], one["name"], one["sentence"], one["tid"], one["evidence"]["rows"],
                 False, one["instance"])
                for one in lint["findings"]
            ]  # fmt: skip
    # The lint of a verdict's name says the same.
    verdicts = {(one[0], one[-1]) for one in told if one[-2]}
    told = [one for one in told if one[-2] or (one[0], one[-1]) not in verdicts]
    spans = _Spans(trace, [row for one in told if one[-1] is None for row in one[4]], end_ns)
    for what, name, sentence, tid, rows, verdict, instance in told:
        begin, end = spans.of(rows) if instance is None else spans.of_instance(instance)
        yield FindingMark(what, name, sentence, begin, end, tid, tuple(rows), verdict, instance)


class _Spans:
    """When rows, or instances, begin and end."""

    def __init__(self, trace: Frames, rows: list[int], end_ns: int) -> None:
        events = trace.events
        at = np.flatnonzero(np.isin(events["row"].to_numpy(), np.array(rows, np.int64)))
        one = events[["row", "time_ns"]].take(at)
        self._times = dict(zip(one["row"].tolist(), one["time_ns"].tolist(), strict=True))
        self._instances, self._end_ns = trace.instances, end_ns
        runs = trace.runs
        self._run = runs["instance"].to_numpy(np.int64, na_value=-1)
        self._ends = filled(runs["end_ns"])

    def of(self, rows: list[int]) -> tuple[int, int]:
        times = [self._times[row] for row in rows if row in self._times] or [self._end_ns]
        return min(times), max(times)

    def of_instance(self, number: int) -> tuple[int, int]:
        """From its schedule to the return of its run; to the end where it is pending for good."""
        one = self._instances.iloc[number]
        known = [int(one[c]) for c in ("scheduled_ns", "ended_ns") if not pd.isna(one[c])]
        if one["end"] == "":
            known.append(self._end_ns)
        elif one["end"] == "run":
            known += [int(e) for e in self._ends[np.flatnonzero(self._run == number)] if e >= 0]
        return min(known, default=self._end_ns), max(known, default=self._end_ns)
