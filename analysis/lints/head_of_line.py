"""A bottom half that waited behind another one of its own context."""

from __future__ import annotations

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, place_of
from qtrace.analysis.lints.starvation import waiting
from qtrace.analysis.qemu_facts import is_one_task
from qtrace.analysis.runs import in_the_way
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Instances that waited longer than the threshold, most of it for one run of their context."""
    if is_one_task(trace.header):
        return Seen(facts={"tool": True})
    found = waiting(trace, threshold)
    findings = []
    rows = ("scheduled_row", "ended_row")
    for group in grouped(found, ("name", "context", "ctx", "tid"), "wait_ns", rows):
        for one in group.shown:
            since, until = int(one["scheduled_ns"]), int(one["ended_ns"])
            first = in_the_way(trace.runs, int(one["tid"]), since, until, one["context"])
            if first is not None:
                break
        else:
            continue
        findings.append(
            Finding(
                "head-of-line",
                trace,
                f"{one['name']} waited {show(until - since, 'ns')} in `{one['context']}`"
                f" ({times(group.count)} over {threshold}) behind {first['name']}, which"
                f" {thread_of(one)} ran for {show(first['end_ns'] - first['time_ns'], 'ns')}",
                **place_of(one),
                time_ns=until,
                value=until - since,
                unit="ns",
                rows=tuple(sorted({*group.rows, int(first["row"])})),
                count=group.count,
                instance=one["index"],
                facts={"behind": str(first["name"])},
            )
        )
    return Seen(findings, (), {"waited": len(found)})


LINT = Lint(
    name="head-of-line",
    sentence="a bottom half waited behind another one of its own context",
    threshold=Threshold(100e6, "ns"),
    why="how long it waited; 0.1 s is what a person at a console or a QMP client notices",
    needs="--all",
    evidence="the schedule and the late run of what waited, and the run in front of it",
    source="effd60c878, and the late reply that the RFC of 5 June 2024 describes",
    check=check,
    qmp=False,
)
