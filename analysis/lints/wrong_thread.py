"""A bottom half ran on a thread that must not run it (field: who may poll for whom)."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, place_of
from qtrace.analysis.qemu_facts import COMPLETIONS, MUST_BE_MAIN
from qtrace.analysis.stacks import frames_of, poll_caller
from qtrace.analysis.wording import thread_of, times


def check(trace: Frames, _threshold: Threshold) -> Seen:
    """Runs with the verdict ``vcpu-poll`` or ``foreign-poll``, less what polls are there for."""
    instances = trace.instances
    ran = (instances["end"] == "run").to_numpy()
    on_vcpu = (instances["verdict"] == "vcpu-poll").to_numpy()
    foreign = (instances["verdict"] == "foreign-poll").to_numpy()
    usual = instances["name"].isin(COMPLETIONS).to_numpy()
    # A vCPU thread that waits for a request may run its completion, of the main context only.
    allowed = on_vcpu & usual & (instances["context"] == "main").to_numpy()
    unsure = (instances["verdict"] == "inconclusive").to_numpy() & ran & ~usual
    columns = ["name", "context", "tid", "thread", "role", "ended_ns", "scheduled_row", "ended_row",
               "stack", "deciding_frame"]  # fmt: skip
    found = instances.loc[(on_vcpu | foreign) & ~allowed, columns]
    found = found.assign(worst=-found["ended_ns"].to_numpy(np.int64))
    total = instances["name"].where(ran).value_counts()
    findings = []
    rows = ("scheduled_row", "ended_row")
    for group in grouped(found, ("name", "context", "tid"), "worst", rows):
        one = group.worst
        chain, poll, _device = frames_of(one)
        caller = poll_caller(chain, poll) or "an unknown caller"
        findings.append(
            Finding(
                "wrong-thread",
                trace,
                f"{one['name']} (`{one['context'] or '?'}`) ran on {thread_of(one)}"
                f" {times(group.count)} of {total[one['name']]:,}: in"
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
    doubts = [f"who ran {unsure.sum():,} of them is not certain"] if unsure.any() else []
    facts = {"runs": int(ran.sum()), "completions": int(allowed.sum()), "all": trace.every}
    return Seen(findings, doubts, facts)


LINT = Lint(
    name="wrong-thread",
    sentence="a bottom half ran on a thread that does not own its context",
    threshold=None,
    why="",
    needs="",
    evidence="its schedule and its run, whose stack shows the poll",
    source="issues 2111, 780 and 1933; effd60c878, 680f200217",
    check=check,
    qmp=False,
)
