"""The answer for a set of traces, as plain data: what `qtrace analyze` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from qtrace.analysis.bottom_halves import Halves
from qtrace.analysis.calls import summarize_calls
from qtrace.analysis.elsewhere import Elsewhere
from qtrace.analysis.frames import Folded, Frames, Part, fold_all
from qtrace.analysis.held import in_words
from qtrace.analysis.late_replies import LateReplies, worst_of_each_kind
from qtrace.analysis.lint import LintResult
from qtrace.analysis.lints import Linting, choose, limits_of
from qtrace.analysis.losses import losses_of
from qtrace.analysis.report_types import (
    BottomHalf,
    Held,
    LateReply,
    LintAnswer,
    RanElsewhere,
    Report,
    Statistics,
    ThreadAway,
    TraceFacts,
)
from qtrace.analysis.selection import select_names
from qtrace.analysis.stacks import functions
from qtrace.analysis.statistics import Summarizing
from qtrace.analysis.stuck import COMPUTES, Away, doubt, is_proven_stuck
from qtrace.analysis.traces import Source, Trace, open_traces
from qtrace.analysis.verdicts import SILENT, worst
from qtrace.errors import ExitStatus
from qtrace.knowledge import SNAPSHOT_JOBS
from qtrace.trace.chain import ALL
from qtrace.trace.reader import TraceFile

# The lints that are asked without being named: what they find is told wherever a verdict is.
ALWAYS = ("long-command",)
NOT_SEEN = "not-seen"


def judge(
    traces: Source,
    patterns: Iterable[str] = (),
    strict: bool = False,
    only: Collection[str] | None = None,
    lints: Collection[str] | None = (),
    thresholds: Mapping[str, float | str] | None = None,
) -> Report:
    """The verdict over all traces; pairs are made inside each of them.

    Args:
        traces: whatever ``open_traces`` takes; what is open already is read as it was opened.
        patterns: globs of bottom halves to judge, instead of those the recordings watched.
        only: read no events of other bottom halves than these (`--all` records millions).
        strict: a ``nested-poll`` for a device's access is a finding too.
        lints: names of those that are to count for the exit status; None for all of them,
            which then only tell.
        thresholds: of lints, see ``run_lints``.

    Returns:
        JSON-able: ``verdict`` (the worst), ``complete``, ``lost_events``, ``target``, ``stuck``
        (threads that did not come back, proven), ``computing`` (those that were busy in one
        callback), ``held`` (when somebody held the target), ``notes`` (why the verdict may not
        be all, in words), ``bottom_halves``, ``calls``, ``late_replies``, ``elsewhere`` and
        ``statistics`` (of each trace; empty unless it has every bottom half), ``lints`` (a result
        of each lint and trace),
        ``traces``, ``warnings``. Their keys and types: analysis/report_types.py.

    Raises:
        TraceUnreadable: see ``open_traces``.
        NoMatch: a pattern matches no bottom half of these traces.
        NoSuchLint, BadThreshold: see ``run_lints``.
    """
    choose(lints)  # A wrong name is refused before anything is read.
    return judge_opened(open_traces(traces, only), patterns, strict, only, lints, thresholds)


def judge_opened(
    traces: Sequence[Trace],
    patterns: Iterable[str] = (),
    strict: bool = False,
    only: Collection[str] | None = None,
    lints: Collection[str] | None = (),
    thresholds: Mapping[str, float | str] | None = None,
    beside: Sequence[Folded] = (),
) -> Report:
    """``judge`` of traces that are open already: what they have computed is not done again.

    Args:
        beside: for each trace what else is to be led past it, at the same time.
    """
    views = [trace.view for trace in traces]
    names = asked_names(views, patterns) if only is None else list(only)
    judged = [Judged(view, names, strict, only is None, lints, thresholds) for view in views]
    for number, one in enumerate(judged):
        fold_all(one.trace, [one, *beside[number : number + 1]])
    return report_of(judged, names, numbered=only is None)


def asked_names(views: Sequence[Frames], patterns: Iterable[str] = ()) -> list[str]:
    """The bottom halves to judge, see ``judge``."""
    return select_names(views, list(patterns))


class Judged:
    """One recording on its way: everything that a report says of it.

    Attributes:
        trace, halves: the recording, and what it shows of the bottom halves that are asked for.
    """

    def __init__(
        self,
        trace: Frames,
        names: Collection[str],
        strict: bool = False,
        every: bool = True,
        lints: Collection[str] | None = (),
        thresholds: Mapping[str, float | str] | None = None,
    ) -> None:
        """``every``: it has the events of every bottom half that it can have."""
        asked = [lint.name for lint in choose(lints)]
        chosen = choose([*asked, *ALWAYS])
        self.trace = trace
        self.halves = Halves(trace, names, strict)
        self._told = asked if lints is not None else []
        self._linting = Linting(trace, chosen, limits_of(chosen, thresholds))
        self._late = LateReplies(trace)
        alls = trace.every and every
        self._elsewhere = Elsewhere() if alls else None
        self._statistics = Summarizing() if alls else None

    def add(self, part: Part) -> None:
        """What is the part's own."""
        for fold in (self.halves, self._linting, self._late, self._elsewhere, self._statistics):
            if fold is not None:
                fold.add(part)

    @cached_property
    def lints(self) -> list[LintAnswer]:
        """A result of each."""
        return [_lint(one, asked=one.lint in self._told) for one in self._linting.end()]

    @property
    def late_replies(self) -> list[LateReply]:
        """All of them."""
        return self._late.end()

    @property
    def elsewhere(self) -> list[RanElsewhere]:
        """Empty unless it has every bottom half."""
        return [] if self._elsewhere is None else self._elsewhere.end()

    @property
    def statistics(self) -> list[Statistics]:
        """Likewise."""
        return [] if self._statistics is None else self._statistics.end()


def report_of(judged: Sequence[Judged], names: Iterable[str], numbered: bool = True) -> Report:
    """What ``judge`` returns, of recordings that have been led past.

    Args:
        numbered: instances have the numbers of the whole recording.
    """
    traces = [one.trace for one in judged]
    loaded = [trace.file for trace in traces]
    halves = [_bottom_half(name, judged) for name in names]
    if not numbered:
        for half in halves:
            for finding in half["findings"]:
                finding["instance"] = None
    stuck, computing, notes = _threads(traces)
    held = [one for trace in traces for one in _held(trace)]
    found = [half["verdict"] for half in halves]
    if worst(found) == NOT_SEEN and any(trace.losses["count"].sum() for trace in loaded):
        # What each bottom half lost is said of it; what was lost of others has nobody to say it.
        notes.append("events were lost, and none of any bottom half was recorded")
    if notes or (held and worst(found) == NOT_SEEN):
        found.append("inconclusive")
    return {
        "verdict": worst([*found, *(["stuck"] if stuck else [])]),
        "complete": all(trace.complete for trace in loaded),
        "lost_events": sum(trace.lost_events for trace in loaded),
        "target": loaded[0].header["target"] if loaded else {},
        "stuck": stuck,
        "computing": computing,
        "held": held,
        "notes": notes,
        "bottom_halves": halves,
        "calls": summarize_calls(loaded),
        "late_replies": worst_of_each_kind([late for one in judged for late in one.late_replies]),
        "elsewhere": [one.elsewhere for one in judged],
        "statistics": [one.statistics for one in judged],
        "lints": [answer for one in judged for answer in one.lints],
        "traces": [_describe(trace) for trace in loaded],
        "warnings": [f"{trace.path}: {text}" for trace in loaded for text in trace.warnings],
    }


def exit_status(report: Report) -> ExitStatus:
    """A proven finding wins over what stays open. Of lints only those count that were asked for."""
    halves = report["bottom_halves"]
    answers = {lint["result"] for lint in report["lints"] if lint["asked"]}
    if report["stuck"] or any(half["findings"] for half in halves) or "finding" in answers:
        return ExitStatus.FINDING
    if "inconclusive" in {*answers, report["verdict"]} or any(
        "inconclusive" in (half["verdict"], *half["verdicts"]) for half in halves
    ):
        return ExitStatus.INCONCLUSIVE
    return ExitStatus.OK


def _threads(
    traces: Sequence[Frames],
) -> tuple[list[ThreadAway], list[ThreadAway], list[str]]:
    """Who was stuck, who computed, and what looks at threads leave open."""
    stuck: list[ThreadAway] = []
    computing: list[ThreadAway] = []
    notes: list[str] = []
    for trace in traces:
        told = {proof.tid for proof in trace.proofs.values()}
        for one in trace.away:
            if is_proven_stuck(one, told):
                stuck.append(_away(one, trace))
            elif one.kind == COMPUTES:
                computing.append(_away(one, trace))
            if why := doubt(one, told):
                notes.append(why)
        if looks := sum(gap.looks for gap in trace.file.gaps):
            notes.append(f"looks are missing with files of the chain: {looks:,} of their rows")
        if every := sum(gap.number(ALL.__eq__) for gap in trace.file.gaps):
            notes.append(
                f"of every bottom half up to {every:,} rows are missing with files of the chain"
            )
    return stuck, computing, notes


def _away(one: Away, trace: Frames) -> ThreadAway:
    return {
        "tid": one.tid,
        "thread": one.thread,
        "role": one.role,
        "sentence": one.sentence,
        "waits": list(one.waits),
        "command": one.command or None,
        "polls": one.polls or None,
        "first_ns": one.first_ns,
        "last_ns": one.last_ns,
        "at_least_ns": one.at_least_ns,
        "over_ns": one.over_ns,
        "came_back": one.came_back,
        "stack": functions(one.stack),
        "evidence": {"trace": str(trace.path), "rows": list(one.rows)},
    }


def _held(trace: Frames) -> list[Held]:
    return [
        {
            "why": one["why"],
            "since_ns": one["since_ns"],
            "at_least_ns": one["at_least_ns"],
            "released_ns": one["released_ns"],
            "sentence": f"the target {in_words(one)}",
            "evidence": {"trace": str(trace.path), "rows": one["rows"]},
        }
        for one in trace.held
    ]


def _lint(result: LintResult, asked: bool) -> LintAnswer:
    found: Any = {"asked": asked, **result.as_dict()}
    answer: LintAnswer = found
    return answer


def _describe(trace: TraceFile) -> TraceFacts:
    return {
        "path": str(trace.path),
        "target": trace.header["target"],
        "recorder": trace.header.get("recorder", ""),
        "wall_clock": trace.header.get("wall_clock", ""),
        "complete": trace.complete,
        "lost_events": trace.lost_events,
        "exit": trace.exit,
        "silent": trace.detach.get("silent", []),
        "by_all": trace.header.get("by_all", []),
    }


def _bottom_half(name: str, judged: Sequence[Judged]) -> BottomHalf:
    traces = [one.trace for one in judged]
    own = [one.halves.found[name] for one in judged]
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    notes: list[str] = []
    verdicts: list[str] = []
    for half, trace in zip(own, traces, strict=True):
        counts += half.verdicts
        reasons += half.reasons
        watched = _is_watched(name, trace.file)
        if gone := sum(gap.of_bottom_half(name, watched) for gap in trace.file.gaps):
            notes.append(f"up to {gone:,} rows of it are missing with files of the chain")
            verdicts.append("inconclusive")
        if half.runs >= SILENT and not half.scheduled:
            notes.append(f"it ran {half.runs} times, but the probe on its schedule never fired")
            verdicts.append("inconclusive")
        if half.scheduled and half.unseen >= SILENT and watched:
            notes.append(
                f"{half.unseen} of its runs were scheduled before the recording, or elsewhere than "
                "where it is watched"
            )
    if not counts and (why := _why_not_seen(name, traces)):
        notes.append(f"no event of it was recorded, but {why}")
        verdicts.append("inconclusive")
    elif not counts and (called := _other_way(name, [trace.file for trace in traces])):
        notes.append(called)
    notes += [f"{count} inconclusive: {reason}" for reason, count in reasons.most_common()]
    return {
        "name": name,
        "scheduled": sum(half.scheduled for half in own),
        "verdict": worst([*counts, *verdicts]),
        "verdicts": dict(counts.most_common()),
        "notes": notes,
        "findings": [
            finding
            for half in own
            for _when, finding in sorted(half.findings, key=lambda one: one[0])
        ],
    }


def _why_not_seen(name: str, traces: Sequence[Frames]) -> str:
    """Why that nothing was seen shows nothing; empty when it does."""
    for trace in traces:
        if _lost(name, trace.file):
            return "events were lost"
        if trace.held:
            return f"the target {in_words(trace.held[0])}"
        if not trace.complete and trace.exit is None:
            return "the trace was cut off"
    return ""


def _other_way(name: str, traces: list[TraceFile]) -> str:
    """That what a job's bottom half would do was done without the job."""
    call = SNAPSHOT_JOBS.get(name)
    rows = [(trace.frame["event"] == "call") & (trace.frame["name"] == call) for trace in traces]
    count = int(sum(own.sum() for own in rows)) if call else 0
    times = "once" if count == 1 else f"{count:,} times"
    return f"{call}() was called {times}, but not by this job: as by HMP" if count else ""


def _lost(name: str, trace: TraceFile) -> bool:
    return bool(losses_of(trace, _is_watched(name, trace))["count"].sum())


def _is_watched(name: str, trace: TraceFile) -> bool:
    return any(item["name"] == name for item in trace.header["watched"])
