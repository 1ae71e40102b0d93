"""The answer for a set of traces, as plain data: what `qtrace analyze` prints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.calls import summarize_calls
from qtrace.analysis.elsewhere import ran_elsewhere
from qtrace.analysis.held import in_words
from qtrace.analysis.late_replies import late_replies
from qtrace.analysis.lint import LintResult
from qtrace.analysis.lints import choose, run_lints
from qtrace.analysis.losses import losses_of
from qtrace.analysis.report_types import (
    BottomHalf,
    Held,
    LintAnswer,
    Report,
    ThreadAway,
    TraceFacts,
    VerdictFinding,
)
from qtrace.analysis.selection import select_names
from qtrace.analysis.stacks import frames_of, functions, judge_wait
from qtrace.analysis.statistics import summarize
from qtrace.analysis.stuck import COMPUTES, Away, doubt, is_proven_stuck
from qtrace.analysis.traces import Source, Trace, open_traces
from qtrace.analysis.verdicts import FINDINGS, SILENT, worst
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
) -> Report:
    """``judge`` of traces that are open already: what they have computed is not done again."""
    asked = choose(lints)
    loaded = [trace.file for trace in traces]
    parts = [trace.instances.assign(trace=number) for number, trace in enumerate(traces)]
    names = select_names(loaded, list(patterns)) if only is None else list(only)
    halves = [_bottom_half(name, traces, parts, strict) for name in names]
    if only is not None:
        # The whole recording has other numbers.
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
    told = [lint.name for lint in asked]
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
        "late_replies": late_replies(traces),
        "elsewhere": [ran_elsewhere(one) if one.every and only is None else [] for one in traces],
        "statistics": [summarize(one) if one.every and only is None else [] for one in traces],
        "lints": [
            _lint(result, asked=lints is not None and result.lint in told)
            for result in run_lints(traces, [*told, *ALWAYS], thresholds)
        ],
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
    traces: Sequence[Trace],
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


def _away(one: Away, trace: Trace) -> ThreadAway:
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


def _held(trace: Trace) -> list[Held]:
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


def _bottom_half(
    name: str, traces: Sequence[Trace], parts: list[pd.DataFrame], strict: bool
) -> BottomHalf:
    files = [one.file for one in traces]
    own = [part[(part["name"] == name).to_numpy()] for part in parts]
    counts: dict[str, int] = {}
    reasons: dict[str, int] = {}
    notes: list[str] = []
    verdicts: list[str] = []
    for part, trace in zip(own, files, strict=True):
        _count(counts, part["verdict"])
        _count(reasons, part.loc[part["reason"] != "", "reason"])
        watched = _is_watched(name, trace)
        if gone := sum(gap.of_bottom_half(name, watched) for gap in trace.gaps):
            notes.append(f"up to {gone:,} rows of it are missing with files of the chain")
            verdicts.append("inconclusive")
        scheduled, runs = part["scheduled_ns"].notna().sum(), (part["end"] == "run").sum()
        if runs >= SILENT and not scheduled:
            notes.append(f"it ran {runs} times, but the probe on its schedule never fired")
            verdicts.append("inconclusive")
        unseen = ((part["end"] == "run") & part["scheduled_ns"].isna()).sum()
        if scheduled and unseen >= SILENT and watched:
            notes.append(
                f"{unseen} of its runs were scheduled before the recording, or elsewhere than "
                "where it is watched"
            )
    if not counts and (why := _why_not_seen(name, traces)):
        notes.append(f"no event of it was recorded, but {why}")
        verdicts.append("inconclusive")
    elif not counts and (called := _other_way(name, files)):
        notes.append(called)
    notes += [f"{count} inconclusive: {reason}" for reason, count in reasons.items()]
    findings = [
        finding
        for part, trace in zip(own, traces, strict=True)
        for finding in _findings(part, trace, strict)
    ]
    return {
        "name": name,
        "scheduled": int(sum(part["scheduled_ns"].notna().sum() for part in own)),
        "verdict": worst([*counts, *verdicts]),
        "verdicts": counts,
        "notes": notes,
        "findings": findings,
    }


def _why_not_seen(name: str, traces: Sequence[Trace]) -> str:
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


def _count(counts: dict[str, int], values: pd.Series) -> None:
    for value, count in values.astype(object).value_counts().items():
        counts[str(value)] = counts.get(str(value), 0) + int(count)


def _findings(part: pd.DataFrame, trace: Trace, strict: bool) -> list[VerdictFinding]:
    """The findings of one bottom half in one trace, in time order."""
    found = part["verdict"].isin(FINDINGS).to_numpy()
    if strict:
        nested = (part["verdict"] == "nested-poll").to_numpy()
        found = found | (nested & part["device_frame"].notna().to_numpy())
    rows = part[found].sort_values("ended_ns", kind="stable")
    rows = rows.astype(object).where(rows.notna(), None).assign(instance=rows.index)
    return [
        _finding(dict(zip(map(str, rows.columns), row, strict=True)), trace)
        for row in rows.to_numpy()
    ]


def _finding(row: dict[str, Any], trace: Trace) -> VerdictFinding:
    numbers = [number for number in (row["scheduled_row"], row["ended_row"]) if number is not None]
    proof = trace.proofs.get(row["instance"])
    if proof is not None:
        numbers += proof.rows
        row |= {
            "thread": proof.thread,
            "role": proof.role,
            "tid": proof.tid,
            "context": row["context"] or proof.pending_in,
            "ended_ns": proof.time_ns,
            "stack": proof.stack,
        }
    _chain, deciding, device = frames_of(row)
    if proof is not None:
        deciding = judge_wait(proof.stack)
    finding: dict[str, Any] = {
        "verdict": row["verdict"],
        "instance": row["instance"],
        "thread": row["thread"],
        "role": row["role"],
        "tid": row["tid"],
        "context": row["context"],
        "time_ns": row["ended_ns"],
        "scheduled_ns": row["scheduled_ns"],
        # 0: it was pending already when it was first seen.
        "scheduled_by_tid": row["scheduled_by_tid"] or None,
        "scheduled_by_thread": row["scheduled_by_thread"],
        "scheduled_by_role": row["scheduled_by_role"],
        "scheduled_stack": functions(row["scheduled_stack"]),
        "stack": functions(row["stack"]),
        "deciding_frame": deciding,
        "device_frame": device if device >= 0 else None,
        **({"polls": proof.polls or None, "sentence": proof.sentence} if proof is not None else {}),
        "evidence": {"trace": str(trace.path), "rows": numbers},
    }
    found: Any = {key: _plain(value) for key, value in finding.items()}
    plain: VerdictFinding = found
    return plain


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
