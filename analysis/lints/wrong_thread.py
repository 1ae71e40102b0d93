"""A bottom half ran on a thread that must not run it (field: who may poll for whom)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, counted, own_instances, place_of
from qtrace.analysis.qemu_facts import COMPLETIONS, MUST_BE_MAIN
from qtrace.analysis.stacks import frames_of, poll_caller
from qtrace.analysis.wording import thread_of, times

COLUMNS = ("name", "context", "tid", "thread", "role", "ended_ns", "scheduled_row", "ended_row",
           "stack", "deciding_frame")  # fmt: skip


class WrongThread:
    """Runs with the verdict ``vcpu-poll`` or ``foreign-poll``, less what polls are there for."""

    def __init__(self, trace: Frames, _threshold: Threshold) -> None:
        self._trace = trace
        self._groups = Groups(("name", "context", "tid"), "worst", ("scheduled_row", "ended_row"))
        self._total: Counter[str] = Counter()
        self._ran = self._allowed = self._unsure = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        instances = part.instances
        ran = part.own & (instances["end"] == "run").to_numpy()
        on_vcpu = (instances["verdict"] == "vcpu-poll").to_numpy()
        foreign = (instances["verdict"] == "foreign-poll").to_numpy()
        usual = instances["name"].isin(COMPLETIONS).to_numpy()
        # A vCPU thread that waits for a request may run its completion, of the main context only.
        allowed = on_vcpu & usual & (instances["context"] == "main").to_numpy()
        unsure = (instances["verdict"] == "inconclusive").to_numpy() & ran & ~usual
        found = own_instances(part, (on_vcpu | foreign) & ~allowed, COLUMNS)
        self._groups.add(found.assign(worst=-found["ended_ns"].to_numpy(np.int64)))
        self._total += counted(instances.loc[ran, "name"])
        self._ran += int(ran.sum())
        self._allowed += int((allowed & part.own).sum())
        self._unsure += int(unsure.sum())

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = []
        for group in self._groups.groups():
            one = group.worst
            chain, poll, _device = frames_of(one)
            caller = poll_caller(chain, poll) or "an unknown caller"
            findings.append(
                Finding(
                    "wrong-thread",
                    self._trace,
                    f"{one['name']} (`{one['context'] or '?'}`) ran on {thread_of(one)}"
                    f" {times(group.count)} of {self._total[one['name']]:,}: in"
                    f" {chain[poll] if poll >= 0 else '?'}() of {caller}",
                    **place_of(one),
                    time_ns=int(one["ended_ns"]),
                    value=group.count,
                    rows=group.rows,
                    count=group.count,
                    level="error" if one["name"] in MUST_BE_MAIN else "warning",
                    instance=one["index"],
                )
            )
        unsure = self._unsure
        doubts = [f"who ran {unsure:,} of them is not certain"] if unsure else []
        facts = {"runs": self._ran, "completions": self._allowed, "all": self._trace.every}
        return Seen(findings, doubts, facts)


LINT = Lint(
    name="wrong-thread",
    sentence="a bottom half ran on a thread that does not own its context",
    threshold=None,
    why="",
    needs="",
    evidence="its schedule and its run, whose stack shows the poll",
    source="issues 2111, 780 and 1933; effd60c878, 680f200217",
    fold=WrongThread,
    qmp=False,
)
