"""A QMP command was done, but its reply had to wait for another bottom half."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, instance_of, numbered, place_of
from qtrace.analysis.lints.starvation import waiting
from qtrace.analysis.qemu_facts import is_one_task
from qtrace.analysis.qmp_commands import LEFT_OUT_NS, answered
from qtrace.analysis.runs import in_the_way
from qtrace.analysis.wording import times
from qtrace.units import show

# do_qmp_dispatch_bh() carries the command out and wakes the dispatcher's coroutine, which sends
# the reply. Since effd60c878 that coroutine is woken by a bottom half of iohandler.
COMMAND, REPLY = "do_qmp_dispatch_bh", "co_schedule_bh_cb"


class LateReply:
    """Answers that existed and were sent later than the threshold.

    By the rows of QMP where the recording has them: they name the command. Else by the wake-up
    of the dispatcher from inside do_qmp_dispatch_bh().
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace, self._threshold = trace, threshold
        self._tool = is_one_task(trace.header)
        self._steps = {"end", "reply"} <= set(trace.header.get("qmp", []))
        self._groups = Groups(("name", "tid"), "wait_ns", ("row", "scheduled_row", "ended_row"))
        self._blockers: dict[int, dict[str, Any]] = {}
        self._lasted: dict[int, int] = {}
        if self._steps and not self._tool:
            self._groups.add(_by_steps(trace, threshold))
        # When they came is known before: each part may show what they waited for.
        self._asked = [one for group in self._groups.groups() for one in group.shown]

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        if self._tool:
            return
        if self._steps:
            for one in self._asked:
                self._look(part, one)
        elif self._trace.every:
            found = _by_wakeups(self._trace, part, self._threshold)
            self._groups.add(found, partial(self._behind, part))

    def _look(self, part: Part, one: dict[str, Any]) -> None:
        """Whether this part has the run that was in its way."""
        times = part.events["time_ns"]
        since, until = int(one["scheduled_ns"]), int(one["ended_ns"])
        if int(times.iloc[part.first_event]) > until or int(times.iloc[-1]) < since:
            return
        found = in_the_way(part.runs, int(one["tid"]), since, until, role=str(one["role"]))
        if found is None:
            return
        lasted = min(int(found["end_ns"]), until) - max(int(found["time_ns"]), since)
        if lasted > self._lasted.get(one["index"], 0):
            self._lasted[one["index"]] = lasted
            self._blockers[one["index"]] = numbered(part, found)

    def _behind(self, part: Part, one: dict[str, Any]) -> dict[str, Any]:
        """Notes the run that was in its way."""
        since, until = int(one["scheduled_ns"]), int(one["ended_ns"])
        tid, role = int(one["tid"]), str(one["role"])
        found = in_the_way(part.runs, tid, since, until, role=role)
        if found is not None:
            self._blockers[one["index"]] = numbered(part, found)
        return {}

    def end(self) -> Seen:
        """See ``Fold``."""
        if self._tool:
            return Seen(facts={"tool": True})
        doubts: list[str] = []
        if not self._steps and not self._trace.every:
            return Seen(doubts=["it needs the rows of QMP, or every bottom half (--all)"])
        if self._steps and self._threshold.value < LEFT_OUT_NS:
            doubts = [f"commands faster than {show(LEFT_OUT_NS, 'ns')} are left out"]
        findings: list[Finding] = []
        for group in self._groups.groups():
            one = next((one for one in group.shown if one["index"] in self._blockers), None)
            if one is None:
                lasted = show(group.worst["wait_ns"], "ns")
                doubts.append(f"a reply waited {lasted} for what the recording has not")
                continue
            blocker, until = self._blockers[one["index"]], int(one["ended_ns"])
            waited = until - int(one["scheduled_ns"])
            behind, took = str(blocker["name"]), blocker["end_ns"] - blocker["time_ns"]
            findings.append(
                Finding(
                    "late-reply",
                    self._trace,
                    f"the reply to {one['name'] or 'a QMP command'} came {show(waited, 'ns')}"
                    f" after the command was"
                    f" done ({times(group.count)} over {self._threshold}): {behind}"
                    f" (`{blocker['context']}`) ran first, for {show(took, 'ns')}",
                    **place_of(one) | {"context": ""},
                    time_ns=until,
                    value=waited,
                    unit="ns",
                    rows=tuple(sorted({*group.rows, int(blocker["row"])})),
                    count=group.count,
                    instance=instance_of(blocker),
                    facts={"behind": behind},
                )
            )
        return Seen(findings, doubts, {"late": self._groups.count})


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


def _by_wakeups(trace: Frames, part: Part, threshold: Threshold) -> pd.DataFrame:
    runs = part.runs
    parent, instance = filled(runs["parent"]), filled(runs["instance"])
    command = (runs["name"] == COMMAND).to_numpy()
    reply = (runs["name"] == REPLY).to_numpy() & (parent >= 0) & command[parent]
    reply = reply & part.own_runs & (instance >= 0)
    number = part.number[instance[reply]]
    row = pd.Series(runs["row"].to_numpy(np.int64)[parent[reply]], index=number)
    found = waiting(trace, part, threshold)
    found = found[found.index.isin(number)]
    return found.assign(row=row.reindex(found.index).to_numpy(), name="")


LINT = Lint(
    name="late-reply",
    sentence="a QMP command was done, but its reply had to wait for another bottom half",
    threshold=Threshold(100e6, "ns"),
    why="from the command's end to its reply; 0.1 s is what a client notices",
    needs="",
    evidence="the end of the command, the late reply, and the run of what ran first",
    source="effd60c878 and the RFC of 5 June 2024",
    fold=LateReply,
)
