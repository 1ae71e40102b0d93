"""A bottom half that nobody waited for ran inside a nested event loop."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, place_of
from qtrace.analysis.qemu_facts import AWAITED, COMPLETIONS, GRAPH, WRAPPED
from qtrace.analysis.stacks import frames_of, poll_caller
from qtrace.analysis.wording import thread_of, times


def check(trace: Frames, _threshold: Threshold) -> Seen:
    """Runs with the verdict ``nested-poll``, less what such a poll waits for.

    On an IOThread a poll is nested when its run lies inside another one.
    """
    instances, runs = trace.instances, trace.runs
    nested = (instances["verdict"] == "nested-poll").to_numpy()
    inner = filled(runs["instance"])[runs["outer"].notna().to_numpy()]
    deeper = np.zeros(len(instances), np.bool_)
    deeper[inner[inner >= 0]] = True
    nested = nested | deeper & (instances["verdict"] == "iothread").to_numpy()
    usual = instances["name"].isin(COMPLETIONS | GRAPH).to_numpy(copy=True)
    usual[_for_own_coroutine(runs)] = True
    columns = ["name", "context", "tid", "thread", "role", "ended_ns", "scheduled_row", "ended_row",
               "stack", "deciding_frame"]  # fmt: skip
    found = instances.loc[nested & ~usual, columns]
    found = found.assign(worst=-found["ended_ns"].to_numpy(np.int64))
    findings = []
    rows = ("scheduled_row", "ended_row")
    for group in grouped(found, ("name", "context", "tid", "stack"), "worst", rows):
        one = group.worst
        chain, poll, _device = frames_of(one)
        waits = poll_caller(chain, poll) or "an unknown caller"
        if waits in AWAITED.get(one["name"], ()):
            continue
        run = runs[(runs["instance"] == one["index"]).to_numpy()].iloc[0]
        outer = "" if pd.isna(run["outer"]) else runs["name"].iloc[int(run["outer"])]
        inside = f", inside {outer}" if outer else ""
        findings.append(
            Finding(
                "nested-loop",
                trace,
                f"{one['name']} (`{one['context'] or '?'}`) ran {times(group.count)} in a nested"
                f" event loop of {thread_of(one)} while {waits} waits{inside}",
                **place_of(one),
                time_ns=int(one["ended_ns"]),
                value=group.count,
                rows=group.rows,
                count=group.count,
                instance=one["index"],
                facts={"waits": waits, "inside": outer},
            )
        )
    return Seen(findings, (), {"nested": int(nested.sum())})


def _for_own_coroutine(runs: pd.DataFrame) -> Numbers:
    """The instances of what a coroutine has called outside of itself, that were scheduled in the
    same run that they ran inside: the poll there waits for that coroutine, as bdrv_create()'s."""
    outer, parent = filled(runs["outer"]), filled(runs["parent"])
    # The outermost run around the schedule.
    around = np.where((parent >= 0) & (outer[parent] >= 0), outer[parent], parent)
    own = runs["name"].isin(WRAPPED).to_numpy() & (outer >= 0) & (around == outer)
    instances: Numbers = filled(runs["instance"])[own]
    return np.asarray(instances[instances >= 0], np.int64)


LINT = Lint(
    name="nested-loop",
    sentence="a bottom half that nobody waited for ran inside a nested event loop",
    threshold=None,
    why="",
    needs="",
    evidence="its schedule and its run, whose stack shows the poll and who waits in it",
    source="effd60c878 (issue 1933), 951702f39c; 6d740fb01b",
    check=check,
    qmp=False,
)
