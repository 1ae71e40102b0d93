"""A bottom half that waited behind another one of its own context."""

from __future__ import annotations

from functools import partial
from typing import Any

from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, place_of
from qtrace.analysis.lints.starvation import waiting
from qtrace.analysis.qemu_facts import is_one_task
from qtrace.analysis.runs import in_the_way
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show


class HeadOfLine:
    """Instances that waited longer than the threshold, most of it for one run of their context."""

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace, self._threshold = trace, threshold
        self._groups = Groups(
            ("name", "context", "ctx", "tid"), "wait_ns", ("scheduled_row", "ended_row")
        )

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        if is_one_task(self._trace.header):
            return
        found = waiting(self._trace, part, self._threshold)
        self._groups.add(found, partial(self._first, part))

    def _first(self, part: Part, one: dict[str, Any]) -> dict[str, Any]:
        """The run that it waited behind."""
        since, until = int(one["scheduled_ns"]), int(one["ended_ns"])
        return {"behind": in_the_way(part.runs, int(one["tid"]), since, until, one["context"])}

    def end(self) -> Seen:
        """See ``Fold``."""
        if is_one_task(self._trace.header):
            return Seen(facts={"tool": True})
        findings = []
        for group in self._groups.groups():
            one = next((one for one in group.shown if one["behind"] is not None), None)
            if one is None:
                continue
            first, until = one["behind"], int(one["ended_ns"])
            waited = until - int(one["scheduled_ns"])
            findings.append(
                Finding(
                    "head-of-line",
                    self._trace,
                    f"{one['name']} waited {show(waited, 'ns')} in `{one['context']}`"
                    f" ({times(group.count)} over {self._threshold}) behind {first['name']}, which"
                    f" {thread_of(one)} ran for {show(first['end_ns'] - first['time_ns'], 'ns')}",
                    **place_of(one),
                    time_ns=until,
                    value=waited,
                    unit="ns",
                    rows=tuple(sorted({*group.rows, int(first["row"])})),
                    count=group.count,
                    instance=one["index"],
                    facts={"behind": str(first["name"])},
                )
            )
        return Seen(findings, (), {"waited": self._groups.count})


LINT = Lint(
    name="head-of-line",
    sentence="a bottom half waited behind another one of its own context",
    threshold=Threshold(100e6, "ns"),
    why="how long it waited; 0.1 s is what a person at a console or a QMP client notices",
    needs="--all",
    evidence="the schedule and the late run of what waited, and the run in front of it",
    source="effd60c878, and the late reply that the RFC of 5 June 2024 describes",
    fold=HeadOfLine,
    qmp=False,
)
