"""What changed between two sets of recordings, as plain data: what `qtrace diff` prints."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qtrace.analysis.distribution import Times
from qtrace.analysis.frames import Frames, Part, fold_all, own_times
from qtrace.analysis.rates import Count, Series, bursts, chance, say
from qtrace.analysis.report import Judged, asked_names, report_of
from qtrace.analysis.report_types import Report
from qtrace.analysis.traces import Source, open_traces
from qtrace.analysis.verdicts import FINDINGS, SEVERITY
from qtrace.errors import ExitStatus


def compare(
    before: Source,
    after: Source,
    patterns: Iterable[str] = (),
    lints: Collection[str] | None = None,
    thresholds: Mapping[str, float | str] | None = None,
) -> dict[str, Any]:
    """Both sides judged alike, and what is different.

    Args:
        before, after: whatever ``open_traces`` takes.
        patterns: globs of bottom halves, instead of those that either side watched.
        lints: names of those whose new findings count; None for all of level ``error``.

    Returns:
        JSON-able: ``answer`` (``new``, ``inconclusive`` or ``none``) and ``why``, a sentence;
        ``before`` and ``after`` (``traces``, ``verdict``, ``complete``, ``lost_events``);
        ``bottom_halves``, each with ``name``, ``verdicts`` (``verdict``, ``before``, ``after``:
        ``[count, of]``, ``bursts``, ``chance``, ``sentence``: see ``rates``); ``times``, for each
        bottom half and context (``main > iohandler`` where it moved)
        ``wait`` and ``duration`` on either side (``count`` and nanoseconds, None without any);
        ``came`` and ``gone``: findings of one side only, with their ``evidence``.

    Raises:
        TraceUnreadable, NoMatch, NoSuchLint, BadThreshold: see ``judge``.
    """
    sides = [[trace.view for trace in open_traces(side)] for side in (before, after)]
    wanted = list(patterns)
    names = [asked_names(side, _known(side, wanted)) for side in sides]
    both = list(dict.fromkeys([*names[0], *names[1]]))
    judged: list[list[Judged]] = []
    samples = [_Samples(), _Samples()]
    for side, sample in zip(sides, samples, strict=True):
        judged.append([Judged(one, both, lints=lints, thresholds=thresholds) for one in side])
        for one in judged[-1]:
            fold_all(one.trace, [one, sample])
    reports = [report_of(side, own) for side, own in zip(judged, names, strict=True)]
    halves = _bottom_halves(reports, judged)
    moved = _moved(samples)
    found = [_findings(report, moved) for report in reports]
    came = [found[1][key] for key in found[1] if key not in found[0]]
    gone = [found[0][key] for key in found[0] if key not in found[1]]
    answer, why = _answer(halves, came, reports, lints)
    return {
        "answer": answer,
        "why": why,
        "before": _side(reports[0]),
        "after": _side(reports[1]),
        "bottom_halves": halves,
        "times": _times(samples, moved),
        "came": came,
        "gone": gone,
        "warnings": [text for report in reports for text in report["warnings"]],
    }


def compare_status(comparison: dict[str, Any]) -> ExitStatus:
    """What came wins over what stays open."""
    statuses = {"new": ExitStatus.FINDING, "inconclusive": ExitStatus.INCONCLUSIVE}
    return statuses.get(comparison["answer"], ExitStatus.OK)


def _known(side: Sequence[Frames], patterns: list[str]) -> list[str]:
    """Of these patterns those that one side knows: the other may have nothing of it."""
    names = {name for trace in side for name in [*trace.watched, *trace.names]}
    return [pattern for pattern in patterns if fnmatch.filter(names, pattern)] or patterns


def _side(report: Report) -> dict[str, Any]:
    found: Mapping[str, Any] = report
    return {key: found[key] for key in ("traces", "verdict", "complete", "lost_events")}


def _bottom_halves(reports: list[Report], sides: list[list[Judged]]) -> list[dict[str, Any]]:
    own = [{half["name"]: half["verdicts"] for half in r["bottom_halves"]} for r in reports]
    halves = []
    for name in dict.fromkeys([*own[0], *own[1]]):
        counts = [side.get(name, {}) for side in own]
        total = [sum(side.values()) for side in counts]
        rows = []
        for verdict in sorted({*counts[0], *counts[1]}, key=SEVERITY.index):
            each = bursts(
                [Series.of_hits(one.halves.found[name].had(verdict)) for one in side]
                for side in sides
            )
            pair = [Count(c.get(verdict, 0), n, each) for c, n in zip(counts, total, strict=True)]
            rows.append(
                {
                    "verdict": verdict,
                    "before": [pair[0].count, pair[0].of],
                    "after": [pair[1].count, pair[1].of],
                    "bursts": each,
                    "chance": chance(pair[0], pair[1]),
                    "sentence": say(pair[0], pair[1]),
                }
            )
        halves.append({"name": name, "instances": total, "verdicts": rows})
    return halves


def _findings(report: Report, moved: Collection[str]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The findings of one side, of each kind the first; by what makes two the same."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    key: tuple[str, ...]
    for half in report["bottom_halves"]:
        for seen in half["findings"]:
            key = (half["name"], seen["verdict"])
            kept = found.setdefault(
                key,
                {
                    "kind": "verdict",
                    "name": half["name"],
                    "verdict": seen["verdict"],
                    "level": "error",
                    "sentence": f"{half['name']}: {seen['verdict']} on {seen['role'] or 'unknown'}"
                    f" thread {seen['thread'] or '?'}",
                    "count": 0,
                    "evidence": seen["evidence"],
                },
            )
            kept["count"] += 1
    for lint in report["lints"]:
        for one in lint["findings"]:
            context = "" if one["name"] in moved else one["context"]
            key = (lint["lint"], one["name"], context, one["role"])
            kept = found.setdefault(
                key,
                {
                    "kind": "lint",
                    "lint": lint["lint"],
                    "name": one["name"],
                    "level": one["level"],
                    "sentence": one["sentence"],
                    "count": 0,
                    "evidence": one["evidence"],
                },
            )
            kept["count"] += one["count"]
    return found


def _answer(
    halves: list[dict[str, Any]],
    came: list[dict[str, Any]],
    reports: list[Report],
    lints: Collection[str] | None,
) -> tuple[str, str]:
    counting = [one for one in came if one["level"] == "error" or lints is not None]
    if counting:
        return "new", f"new: {counting[0]['sentence']}"
    for after in reports[1]["bottom_halves"]:
        if open_still := after["verdicts"].get("inconclusive", 0):
            text = f"{open_still:,} of {after['name']} after are inconclusive: one may be new"
            return "inconclusive", text
        if after["verdict"] == "inconclusive":
            return "inconclusive", f"{after['name']} after: {after['notes'][0]}"
    for half in halves:
        found = [row for row in half["verdicts"] if row["verdict"] in FINDINGS and row["before"][0]]
        if found and not half["instances"][1]:
            text = f"{half['name']} was not seen after: nothing shows that its finding is gone"
            return "inconclusive", text
    asked = lints is not None
    if asked and any(lint["result"] == "inconclusive" for lint in reports[1]["lints"]):
        names = [r["lint"] for r in reports[1]["lints"] if r["result"] == "inconclusive"]
        return "inconclusive", f"{', '.join(dict.fromkeys(names))}: inconclusive after"
    if came:
        return "none", "what came is told by lints and does not count: --lint NAME makes it count"
    return "none", "nothing new came"


class _Samples:
    """All waits and durations of one side, by name and context."""

    def __init__(self) -> None:
        self.found: dict[str, dict[tuple[str, str], Times]] = {"wait": {}, "duration": {}}

    def add(self, part: Part) -> None:
        """What is the part's own."""
        for what, found in own_times(part):
            for (name, context), values in found.groupby(["name", "context"], observed=True)["ns"]:
                times = self.found[what].setdefault((str(name), str(context)), Times())
                times.add(values.to_numpy(np.int64))


def _moved(sides: list[_Samples]) -> dict[str, tuple[str, str]]:
    """Names to the contexts before and after, of what ran in one before and in another one after,
    as with a fix that schedules it elsewhere: that is compared with itself all the same."""
    own: list[dict[str, set[str]]] = [{}, {}]
    for side, contexts in zip(sides, own, strict=True):
        for name, context in {key for samples in side.found.values() for key in samples}:
            contexts.setdefault(name, set()).add(context)
    found = {}
    for name in own[0].keys() & own[1].keys():
        before, after = own[0][name], own[1][name]
        if before != after and len(before) == len(after) == 1:
            found[name] = (before.pop(), after.pop())
    return found


def _times(sides: list[_Samples], moved: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """The bottom halves of either side, those that ran most first."""
    keys = dict.fromkeys(
        (name, moved.get(name, (context, context)))
        for side in sides
        for samples in side.found.values()
        for name, context in samples
    )
    rows = []
    for name, contexts in keys:
        row: dict[str, Any] = {"name": name, "context": " > ".join(dict.fromkeys(contexts))}
        ran = 0
        for what in ("wait", "duration"):
            pair = []
            for side, context in zip(sides, contexts, strict=True):
                times = side.found[what].get((name, context), Times())
                ran = max(ran, times.count)
                found = times.percentiles()
                pair.append(None if found is None else {"count": times.count, **found})
            row[what] = {"before": pair[0], "after": pair[1]}
        rows.append((ran, row))
    return [row for _, row in sorted(rows, key=lambda one: -one[0])]
