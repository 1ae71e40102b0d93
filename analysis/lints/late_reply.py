"""A QMP command was done, but its reply had to wait for another bottom half."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, instance_of, place_of
from qtrace.analysis.lints.starvation import waiting
from qtrace.analysis.qemu_facts import is_one_task
from qtrace.analysis.qmp_commands import LEFT_OUT_NS, answered
from qtrace.analysis.runs import in_the_way
from qtrace.analysis.wording import times
from qtrace.units import show

# do_qmp_dispatch_bh() carries the command out and wakes the dispatcher's coroutine, which sends
# the reply. Since effd60c878 that coroutine is woken by a bottom half of iohandler.
COMMAND, REPLY = "do_qmp_dispatch_bh", "co_schedule_bh_cb"


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Answers that existed and were sent later than the threshold.

    By the rows of QMP where the recording has them: they name the command. Else by the wake-up
    of the dispatcher from inside do_qmp_dispatch_bh().
    """
    if is_one_task(trace.header):
        return Seen(facts={"tool": True})
    if {"end", "reply"} <= set(trace.header.get("qmp", [])):
        found = _by_steps(trace, threshold)
        quick = threshold.value < LEFT_OUT_NS
        doubts = [f"commands faster than {show(LEFT_OUT_NS, 'ns')} are left out"] if quick else []
    elif trace.every:
        found, doubts = _by_wakeups(trace, threshold), []
    else:
        return Seen(doubts=["it needs the rows of QMP, or every bottom half (--all)"])
    findings: list[Finding] = []
    rows = ("row", "scheduled_row", "ended_row")
    for group in grouped(found, ("name", "tid"), "wait_ns", rows):
        for one in group.shown:
            since, until = int(one["scheduled_ns"]), int(one["ended_ns"])
            tid, role = int(one["tid"]), str(one["role"])
            blocker = in_the_way(trace.runs, tid, since, until, role=role)
            if blocker is not None:
                break
        else:
            lasted = show(group.worst["wait_ns"], "ns")
            doubts.append(f"a reply waited {lasted} for what the recording has not")
            continue
        behind, took = str(blocker["name"]), show(blocker["end_ns"] - blocker["time_ns"], "ns")
        findings.append(
            Finding(
                "late-reply",
                trace,
                f"the reply to {one['name'] or 'a QMP command'} came {show(until - since, 'ns')}"
                f" after the command was"
                f" done ({times(group.count)} over {threshold}): {behind}"
                f" (`{blocker['context']}`) ran first, for {took}",
                **place_of(one) | {"context": ""},
                time_ns=until,
                value=until - since,
                unit="ns",
                rows=tuple(sorted({*group.rows, int(blocker["row"])})),
                count=group.count,
                instance=instance_of(blocker),
                facts={"behind": behind},
            )
        )
    return Seen(findings, doubts, {"late": len(found)})


def _by_steps(trace: Frames, threshold: Threshold) -> pd.DataFrame:
    found = answered(trace.commands, trace.qmp_losses).rename(
        columns={
            "ended_ns": "scheduled_ns",
            "replied_ns": "ended_ns",
            "ended_row": "scheduled_row",
            "replied_row": "ended_row",
        }
    )
    wait = found["ended_ns"] - found["scheduled_ns"]
    found = found.assign(wait_ns=wait, row=found["scheduled_row"])
    return found[(wait >= max(threshold.value, 1)).to_numpy()]


def _by_wakeups(trace: Frames, threshold: Threshold) -> pd.DataFrame:
    runs = trace.runs
    parent = filled(runs["parent"])
    command = (runs["name"] == COMMAND).to_numpy()
    reply = (runs["name"] == REPLY).to_numpy() & (parent >= 0) & command[parent]
    woken = runs[reply].set_index("instance")
    found = waiting(trace, threshold)
    found = found[found.index.isin(woken.index)]
    row = runs["row"].to_numpy(np.int64)[filled(woken["parent"].reindex(found.index))]
    return found.assign(row=row, name="")


LINT = Lint(
    name="late-reply",
    sentence="a QMP command was done, but its reply had to wait for another bottom half",
    threshold=Threshold(100e6, "ns"),
    why="from the command's end to its reply; 0.1 s is what a client notices",
    needs="",
    evidence="the end of the command, the late reply, and the run of what ran first",
    source="effd60c878 and the RFC of 5 June 2024",
    check=check,
)
