"""The answer for a set of traces, as plain data: what `qtrace analyze` prints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.calls import summarize_calls
from qtrace.analysis.lint import choose, run_lints
from qtrace.analysis.load import load
from qtrace.analysis.names import names_of
from qtrace.analysis.replies import late_replies
from qtrace.analysis.stacks import functions, judge_wait
from qtrace.analysis.statistics import summarize
from qtrace.analysis.stranded import Proof, proofs
from qtrace.analysis.traces import AnalysedTrace, Source, Traces, open_traces
from qtrace.analysis.verdicts import FINDINGS, SILENT, losses_of, worst
from qtrace.errors import ExitStatus
from qtrace.trace.reader import Trace


def judge(
    traces: Source,
    patterns: Iterable[str] = (),
    strict: bool = False,
    only: Collection[str] | None = None,
    lints: Collection[str] | None = (),
    thresholds: Mapping[str, float | str] | None = None,
) -> dict[str, Any]:
    """The verdict over all traces; pairs are made inside each of them.

    Args:
        traces: whatever ``open_traces`` takes; with ``only`` what ``load`` does.
        patterns: globs of bottom halves to judge, instead of those the recordings watched.
        only: read no events of other bottom halves than these (`--all` records millions).
        strict: a ``nested-poll`` for a device's access is a finding too.
        lints: names of those that are to count for the exit status; None for all of them,
            which then only tell.
        thresholds: of lints, see ``run_lints``.

    Returns:
        JSON-able: ``verdict`` (the worst), ``complete``, ``lost_events``, ``target``,
        ``bottom_halves``, ``calls``, ``late_replies``, ``statistics`` (of each trace; empty
        unless it has every bottom half), ``lints`` (a result of each lint and trace),
        ``traces``, ``warnings``. Times are nanoseconds.

    Raises:
        TraceUnreadable: see ``load``.
        NoMatch: a pattern matches no bottom half of these traces.
        NoSuchLint, BadThreshold: see ``run_lints``.
    """
    choose(lints)  # A wrong name is refused before anything is read.
    if only is None or isinstance(traces, Traces | AnalysedTrace):
        analysed: Sequence[AnalysedTrace] = open_traces(traces)
    else:
        analysed = [AnalysedTrace(trace) for trace in load(traces, only)]
    return judge_analysed(analysed, patterns, strict, only, lints, thresholds)


def judge_analysed(
    analysed: Sequence[AnalysedTrace],
    patterns: Iterable[str] = (),
    strict: bool = False,
    only: Collection[str] | None = None,
    lints: Collection[str] | None = (),
    thresholds: Mapping[str, float | str] | None = None,
) -> dict[str, Any]:
    """``judge`` of traces that are open already: what they have computed is not done again."""
    asked = choose(lints)
    loaded = [one.trace for one in analysed]
    parts = [trace.instances.assign(trace=number) for number, trace in enumerate(analysed)]
    names = names_of(loaded, list(patterns)) if only is None else list(only)
    halves = [_bottom_half(name, loaded, parts, strict) for name in names]
    return {
        "verdict": worst(half["verdict"] for half in halves),
        "complete": all(trace.complete for trace in loaded),
        "lost_events": sum(trace.lost_events for trace in loaded),
        "target": loaded[0].header["target"] if loaded else {},
        "bottom_halves": halves,
        "calls": summarize_calls(loaded),
        "late_replies": late_replies(analysed),
        "statistics": [summarize(one) if one.every and only is None else [] for one in analysed],
        "lints": [
            {"asked": lints is not None, **result.as_dict()}
            for result in run_lints(analysed, [lint.name for lint in asked], thresholds)
        ],
        "traces": [_describe(trace) for trace in loaded],
        "warnings": [f"{trace.path}: {text}" for trace in loaded for text in trace.warnings],
    }


def exit_status(report: dict[str, Any]) -> ExitStatus:
    """A proven finding wins over what stays open. Of lints only those count that were asked for."""
    halves = report["bottom_halves"]
    answers = {lint["result"] for lint in report["lints"] if lint["asked"]}
    if any(half["findings"] for half in halves) or "finding" in answers:
        return ExitStatus.FINDING
    if "inconclusive" in answers or any(
        "inconclusive" in (half["verdict"], *half["verdicts"]) for half in halves
    ):
        return ExitStatus.INCONCLUSIVE
    return ExitStatus.OK


def _describe(trace: Trace) -> dict[str, Any]:
    return {
        "path": str(trace.path),
        "target": trace.header["target"],
        "recorder": trace.header.get("recorder", ""),
        "wall_clock": trace.header.get("wall_clock", ""),
        "complete": trace.complete,
        "lost_events": trace.lost_events,
        "exit": trace.exit,
        "silent": trace.detach.get("silent", []),
    }


def _bottom_half(
    name: str, traces: list[Trace], parts: list[pd.DataFrame], strict: bool
) -> dict[str, Any]:
    own = [part[(part["name"] == name).to_numpy()] for part in parts]
    counts: dict[str, int] = {}
    reasons: dict[str, int] = {}
    notes: list[str] = []
    verdicts: list[str] = []
    for part, trace in zip(own, traces, strict=True):
        _count(counts, part["verdict"])
        _count(reasons, part.loc[part["reason"] != "", "reason"])
        scheduled, runs = part["scheduled_ns"].notna().sum(), (part["end"] == "run").sum()
        if runs >= SILENT and not scheduled:
            notes.append(f"it ran {runs} times, but the probe on its schedule never fired")
            verdicts.append("inconclusive")
        unseen = ((part["end"] == "run") & part["scheduled_ns"].isna()).sum()
        if scheduled and unseen >= SILENT and _is_watched(name, trace):
            notes.append(
                f"{unseen} of its runs were scheduled before the recording, or elsewhere than "
                "where it is watched"
            )
    if not counts and any(_lost(name, trace) for trace in traces):
        notes.append("no event of it was recorded, but events were lost")
        verdicts.append("inconclusive")
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


def _lost(name: str, trace: Trace) -> bool:
    return bool(losses_of(trace, _is_watched(name, trace))["count"].sum())


def _is_watched(name: str, trace: Trace) -> bool:
    return any(item["name"] == name for item in trace.header["watched"])


def _count(counts: dict[str, int], values: pd.Series) -> None:
    for value, count in values.astype(object).value_counts().items():
        counts[str(value)] = counts.get(str(value), 0) + int(count)


def _findings(part: pd.DataFrame, trace: Trace, strict: bool) -> list[dict[str, Any]]:
    """The findings of one bottom half in one trace, in time order."""
    found = part["verdict"].isin(FINDINGS).to_numpy()
    if strict:
        nested = (part["verdict"] == "nested-poll").to_numpy()
        found = found | (nested & (part["device_frame"] >= 0).to_numpy())
    rows = part[found].sort_values("ended_ns", kind="stable")
    rows = rows.astype(object).where(rows.notna(), None).assign(instance=rows.index)
    shown = proofs(part, trace)
    return [
        _finding(dict(zip(map(str, rows.columns), row, strict=True)), trace, shown)
        for row in rows.to_numpy()
    ]


def _finding(row: dict[str, Any], trace: Trace, shown: dict[int, Proof]) -> dict[str, Any]:
    numbers = [number for number in (row["scheduled_row"], row["ended_row"]) if number is not None]
    proof = shown.get(row["instance"])
    if proof is not None:
        numbers += proof.rows
        row |= {
            "thread": proof.thread,
            "role": proof.role,
            "tid": proof.tid,
            "context": row["context"] or proof.pending_in,
            "ended_ns": proof.time_ns,
            "stack": proof.stack,
            "deciding_frame": judge_wait(proof.stack),
        }
    finding = {
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
        "deciding_frame": row["deciding_frame"],
        "device_frame": row["device_frame"] if row["device_frame"] >= 0 else None,
        **({"polls": proof.polls or None, "sentence": proof.sentence} if proof is not None else {}),
        "evidence": {"trace": str(trace.path), "rows": numbers},
    }
    return {key: _plain(value) for key, value in finding.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
