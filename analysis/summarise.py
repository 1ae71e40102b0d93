"""The summary of a recording: what ``qtrace fleet`` keeps of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qtrace.analysis.bottom_halves import Half
from qtrace.analysis.distribution import Distribution
from qtrace.analysis.frames import Frames, Part, fold_all, own_times
from qtrace.analysis.rates import Series
from qtrace.analysis.report import Judged, asked_names, report_of
from qtrace.analysis.report_types import Evidence, Report
from qtrace.analysis.summary import About, Counted, Environment, Found, Summary, Time, merged
from qtrace.analysis.traces import Source, open_traces

# Rows that prove the best example of a finding: as many as a lint names.
ROWS = 10


def summarise(source: Source, name: str | None = None) -> Summary:
    """Verdicts, findings of every lint, times and environment of a recording, in kilobytes.

    The answers are those of ``judge`` with all lints. Of several recordings: their summaries
    merged.

    Args:
        source: whatever ``open_traces`` takes.
        name: what findings call the recording, instead of its path: where it really lies.

    Raises:
        TraceUnreadable: see ``open_traces``.
    """
    return merged(_summary(trace.view, name or str(trace.path)) for trace in open_traces(source))


def _summary(trace: Frames, name: str) -> Summary:
    names = asked_names([trace])
    judged, seen = Judged(trace, names, lints=None), _Seen()
    fold_all(trace, [judged, seen])
    report = report_of([judged], names)
    return Summary(
        recordings=1,
        events=seen.events,
        lost_events=report["lost_events"],
        observed_ns=seen.last_ns - seen.first_ns,
        incomplete=int(not report["complete"]),
        verdicts={report["verdict"]: 1},
        environments={_environment(report): 1},
        bottom_halves={name: (_counted(half),) for name, half in judged.halves.found.items()},
        lints={lint["lint"]: {lint["result"]: 1} for lint in report["lints"]},
        findings=_merged_findings(report, name),
        times=seen.times,
    )


class _Seen:
    """How much there was of it, and how long things took."""

    def __init__(self) -> None:
        self.events = self.first_ns = self.last_ns = 0
        self.times: dict[Time, Distribution] = {}

    def add(self, part: Part) -> None:
        """What is the part's own."""
        times = part.events["time_ns"]
        if not self.events:
            self.first_ns = int(times.iloc[0])
        self.last_ns = int(times.iloc[-1])
        self.events += len(times) - part.first_event
        for what, found in own_times(part):
            for (name, context), values in found.groupby(["name", "context"], observed=True)["ns"]:
                key = Time(what, str(name), str(context))
                known = self.times.get(key, Distribution())
                self.times[key] = known + Distribution.of(values.to_numpy(np.int64))


def _environment(report: Report) -> Environment:
    (facts,) = report["traces"]
    target = facts["target"]
    texts = {key: target.get(key, "") for key in Environment._fields if key != "recorder"}
    told = {key: text for key, text in texts.items() if isinstance(text, str)}
    return Environment(**told, recorder=str(facts["recorder"]))


def _counted(half: Half) -> Counted:
    series = ((verdict, Series.of_hits(half.had(verdict))) for verdict in sorted(half.verdicts))
    return Counted(half.verdicts.total(), tuple(series))


def _merged_findings(report: Report, name: str) -> dict[About, Found]:
    """Of one recording: several of a kind count, and are one."""
    found: dict[About, Found] = {}
    for about, one in _findings(report, name):
        if about in found:
            one = replace(found[about] + one, recordings=1)
        found[about] = one
    return found


def _findings(report: Report, name: str) -> Iterator[tuple[About, Found]]:
    def proof(evidence: Evidence) -> tuple[str, tuple[int, ...]]:
        return name, tuple(evidence["rows"][:ROWS])

    for away in report["stuck"]:
        yield (
            About("stuck", "", "", away["role"]),
            Found(1, 1, "error", away["at_least_ns"], away["sentence"], *proof(away["evidence"])),
        )
    for half in report["bottom_halves"]:
        for seen in half["findings"]:
            sentence = (
                f"{half['name']}: {seen['verdict']} on {seen['role'] or 'unknown'} thread"
                f" {seen['thread'] or '?'}"
            )
            yield (
                About(seen["verdict"], half["name"], seen["context"], seen["role"]),
                Found(1, 1, "error", 0, sentence, *proof(seen["evidence"])),
            )
    for lint in report["lints"]:
        for one in lint["findings"]:
            yield (
                About(lint["lint"], one["name"], one["context"], one["role"]),
                Found(
                    one["count"], 1, one["level"], one["value"], one["sentence"],
                    *proof(one["evidence"]),
                ),
            )  # fmt: skip
