"""Schedules that came to nothing: swallowed by a pending one in masses, or cancelled by others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, place_of
from qtrace.analysis.runs import run_at
from qtrace.analysis.wording import thread_of, times

BECAME = {"run": "one run", "cancel": "a cancel", "delete": "a delete"}


def check(trace: Frames, threshold: Threshold) -> Seen:
    """One pending bottom half that swallowed more further schedules than the threshold, or as
    many schedules of one bottom half that other threads cancelled.

    A schedule of what is pending already inserts nothing: that is what bottom halves are for.
    In masses, something asks for work that is not being done. What a thread, or the callback
    itself, takes back again is its own affair (block/linux-aio.c, util/thread-pool.c).
    """
    instances = trace.instances
    findings = [*_coalesced(trace, threshold), *_cancelled(trace, threshold)]
    ends = instances["end"].value_counts()
    facts = {
        "coalesced": int(instances["coalesced"].sum()),
        "cancelled": int(ends.get("cancel", 0)),
    }
    return Seen(findings, (), facts)


def _coalesced(trace: Frames, threshold: Threshold) -> Iterator[Finding]:
    instances = trace.instances
    many = (instances["coalesced"] >= threshold.value).to_numpy()
    many = many & ((instances["verdict"] != "inconclusive").to_numpy())
    columns = ["name", "context", "tid", "thread", "role", "ended_ns", "scheduled_ns",
               "scheduled_row", "ended_row", "coalesced", "end", "wait_ns"]  # fmt: skip
    found = instances.loc[many, columns]
    rows = ("scheduled_row", "ended_row")
    for group in grouped(found, ("name", "context"), "coalesced", rows):
        one = group.worst
        became = BECAME.get(str(one["end"]), "nothing yet")
        ended = 0 if pd.isna(one["ended_ns"]) else int(one["ended_ns"])
        yield Finding(
            "lost-schedule",
            trace,
            f"{one['name']} (`{one['context'] or '?'}`) was scheduled"
            f" {int(one['coalesced']) + 1:,} times for {became}"
            f" ({times(group.count)} over {threshold})",
            **place_of(one),
            time_ns=ended,
            value=int(one["coalesced"]),
            rows=group.rows,
            count=group.count,
            instance=one["index"],
        )


def _cancelled(trace: Frames, threshold: Threshold) -> Iterator[Finding]:
    instances, runs = trace.instances, trace.runs
    taken = (instances["verdict"] == "cancelled").to_numpy()
    taken = taken & (filled(instances["scheduled_by_tid"]) != filled(instances["tid"]))
    columns = ["name", "context", "tid", "thread", "role", "callback", "ended_ns", "scheduled_row",
               "ended_row", "scheduled_by_tid", "wait_ns"]  # fmt: skip
    found = instances.loc[taken, columns]
    found = found[filled(found["scheduled_by_tid"]) > 0]
    at = run_at(runs, filled(found["tid"]), filled(found["ended_ns"]), trace.all_losses)
    own = runs["callback"].to_numpy()[at] == found["callback"].to_numpy() if len(runs) else False
    # Where a run may have been lost, it may have been its own.
    sure = (at >= 0) if trace.lost_events else np.ones(len(at), np.bool_)
    found = found[sure & ~((at >= 0) & own)]
    rows = ("scheduled_row", "ended_row")
    for group in grouped(found, ("name", "context", "tid"), "wait_ns", rows):
        if group.count < threshold.value:
            continue
        one = group.worst
        yield Finding(
            "lost-schedule",
            trace,
            f"{thread_of(one)} cancelled {one['name']}"
            f" (`{one['context'] or '?'}`) {times(group.count)} that another thread had scheduled",
            **place_of(one),
            time_ns=int(one["ended_ns"]),
            value=group.count,
            rows=group.rows,
            count=group.count,
            instance=one["index"],
        )


LINT = Lint(
    name="lost-schedule",
    sentence="schedules came to nothing: swallowed by a pending one, or cancelled by others",
    threshold=Threshold(1_000, ""),
    why="schedules for one run, or cancelled ones; qemu-img bench swallows as many as requests"
    " are in flight (32)",
    needs="--all",
    evidence="the schedule that became the instance, and its end",
    source="7838c67f22, b7a745dc33, ccb9dc1012",
    check=check,
    qmp=False,
)
