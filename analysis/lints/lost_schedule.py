"""Schedules that came to nothing: swallowed by a pending one in masses, or cancelled by others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, own_instances, place_of
from qtrace.analysis.runs import run_at
from qtrace.analysis.wording import thread_of, times

BECAME = {"run": "one run", "cancel": "a cancel", "delete": "a delete"}


COLUMNS = ("name", "context", "tid", "thread", "role", "ended_ns", "scheduled_ns", "scheduled_row",
           "ended_row", "coalesced", "end", "wait_ns", "callback", "scheduled_by_tid")  # fmt: skip


class LostSchedule:
    """One pending bottom half that swallowed more further schedules than the threshold, or as
    many schedules of one bottom half that other threads cancelled.

    A schedule of what is pending already inserts nothing: that is what bottom halves are for.
    In masses, something asks for work that is not being done. What a thread, or the callback
    itself, takes back again is its own affair (block/linux-aio.c, util/thread-pool.c).
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace, self._threshold = trace, threshold
        rows = ("scheduled_row", "ended_row")
        self._swallowed = Groups(("name", "context"), "coalesced", rows)
        self._taken = Groups(("name", "context", "tid"), "wait_ns", rows)
        self._coalesced = self._cancelled = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        instances = part.instances
        own = part.own
        many = (instances["coalesced"] >= self._threshold.value).to_numpy()
        many = many & ((instances["verdict"] != "inconclusive").to_numpy())
        self._swallowed.add(own_instances(part, many, COLUMNS))
        self._taken.add(self._by_others(part))
        self._coalesced += int(instances["coalesced"].to_numpy()[own].sum())
        self._cancelled += int((own & (instances["end"] == "cancel").to_numpy()).sum())

    def _by_others(self, part: Part) -> pd.DataFrame:
        instances, runs = part.instances, part.runs
        taken = (instances["verdict"] == "cancelled").to_numpy()
        by = filled(instances["scheduled_by_tid"])
        taken = taken & (by != filled(instances["tid"])) & (by > 0)
        found = own_instances(part, taken, COLUMNS)
        at = run_at(runs, filled(found["tid"]), filled(found["ended_ns"]), self._trace.all_losses)
        own = (
            runs["callback"].to_numpy()[at] == found["callback"].to_numpy() if len(runs) else False
        )
        # Where a run may have been lost, it may have been its own.
        sure = (at >= 0) if self._trace.lost_events else np.ones(len(at), np.bool_)
        return found[sure & ~((at >= 0) & own)]

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = [*self._findings_swallowed(), *self._findings_taken()]
        return Seen(findings, (), {"coalesced": self._coalesced, "cancelled": self._cancelled})

    def _findings_swallowed(self) -> Iterator[Finding]:
        for group in self._swallowed.groups():
            one = group.worst
            became = BECAME.get(str(one["end"]), "nothing yet")
            ended = 0 if pd.isna(one["ended_ns"]) else int(one["ended_ns"])
            yield Finding(
                "lost-schedule",
                self._trace,
                f"{one['name']} (`{one['context'] or '?'}`) was scheduled"
                f" {int(one['coalesced']) + 1:,} times for {became}"
                f" ({times(group.count)} over {self._threshold})",
                **place_of(one),
                time_ns=ended,
                value=int(one["coalesced"]),
                rows=group.rows,
                count=group.count,
                instance=one["index"],
            )

    def _findings_taken(self) -> Iterator[Finding]:
        for group in self._taken.groups():
            if group.count < self._threshold.value:
                continue
            one = group.worst
            yield Finding(
                "lost-schedule",
                self._trace,
                f"{thread_of(one)} cancelled {one['name']}"
                f" (`{one['context'] or '?'}`) {times(group.count)} that another thread had"
                " scheduled",
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
    fold=LostSchedule,
    qmp=False,
)
