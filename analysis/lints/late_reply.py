"""A QMP command was done, but its reply had to wait for another bottom half."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.lint import Finding, Lint, Seen, Threshold, show
from qtrace.analysis.lints.starvation import waiting
from qtrace.analysis.occurrences import grouped, times
from qtrace.analysis.runs import in_the_way
from qtrace.analysis.tools import is_tool
from qtrace.analysis.traces import AnalysedTrace

# do_qmp_dispatch_bh() carries the command out and wakes the dispatcher's coroutine, which sends
# the reply. Since effd60c878 that coroutine is woken by a bottom half of iohandler.
COMMAND, REPLY = "do_qmp_dispatch_bh", "co_schedule_bh_cb"


def check(trace: AnalysedTrace, threshold: Threshold) -> Seen:
    """Wake-ups of the dispatcher from inside a command that came later than the threshold."""
    if is_tool(trace.header):
        return Seen(facts={"tool": True})
    runs = trace.runs
    parent = runs["parent"].to_numpy(np.int64)
    command = (runs["name"] == COMMAND).to_numpy()
    reply = (runs["name"] == REPLY).to_numpy() & (parent >= 0) & command[parent]
    woken = runs[reply].set_index("instance")
    found = waiting(trace, threshold)
    found = found[found.index.isin(woken.index)]
    found = found.assign(
        command_row=runs["row"].to_numpy(np.int64)[woken["parent"].reindex(found.index)]
    )
    findings: list[Finding] = []
    doubts: list[str] = []
    rows = ("command_row", "scheduled_row", "ended_row")
    for group in grouped(found, ("context", "tid"), "wait_ns", rows):
        one = group.worst
        since, until = int(one["scheduled_ns"]), int(one["ended_ns"])
        blocker = in_the_way(runs, int(one["tid"]), since, until)
        lasted = show(until - since, "ns")
        if blocker is None or blocker["overlap_ns"] * 2 < until - since:
            doubts.append(f"a reply waited {lasted} for what the recording has not")
            continue
        behind, took = blocker["name"], show(blocker["end_ns"] - blocker["time_ns"], "ns")
        findings.append(
            Finding(
                "late-reply", trace,
                f"the reply to a QMP command came {lasted} after the command was done"
                f" ({times(group.count)} over {threshold}): {behind} (`{blocker['context']}`) ran"
                f" first, for {took}",
                REPLY, str(one["context"]), int(one["tid"]), str(one["thread"]), str(one["role"]),
                until, until - since, "ns",
                tuple(sorted({*group.rows, int(blocker["row"])})), group.count,
                "warning", one["index"], {"behind": str(behind)},
            )
        )  # fmt: skip
    return Seen(findings, doubts, {"commands": int(command.sum()), "woken": int(reply.sum())})


LINT = Lint(
    name="late-reply",
    sentence="a QMP command was done, but its reply had to wait for another bottom half",
    threshold=Threshold(100e6, "ns"),
    why="from the command's end to its reply; 0.1 s is what a client notices",
    needs="--all",
    evidence="the command's run, the wake-up for the reply and its late run, and what ran first",
    source="effd60c878 and the RFC of 5 June 2024",
    check=check,
)
