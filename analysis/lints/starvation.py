"""A context with work to do that nobody dispatched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, own_instances, place_of
from qtrace.analysis.losses import disturbed
from qtrace.analysis.qemu_facts import is_one_task
from qtrace.analysis.runs import in_the_way, on_vcpus
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show


class Starvation:
    """Instances for which no bottom half of their context ran for longer than the threshold.

    One that is behind another of its own context waits for that one (lint head-of-line).
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace, self._threshold = trace, threshold
        self._tool = is_one_task(trace.header)
        self._groups = Groups(("context", "ctx", "tid"), "gap", ("scheduled_row", "ended_row"))
        self._polls = _Polls()

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        if self._tool:
            return
        self._polls.begin(part)
        found = waiting(self._trace, part, self._threshold)
        idle_since = _idle_since(part, found)
        found = found.assign(idle_since=idle_since, gap=filled(found["ended_ns"]) - idle_since)
        found = found[(found["gap"] >= self._threshold.value).to_numpy()]
        self._groups.add(found, partial(self._cause, part))
        self._polls.end(part)

    def _cause(self, part: Part, one: dict[str, Any]) -> dict[str, Any]:
        """What kept its context from being dispatched, in words, and the rows that show it."""
        since, until, tid = int(one["idle_since"]), int(one["ended_ns"]), int(one["tid"])
        blocker = in_the_way(part.runs, tid, since, until)
        if blocker is None:
            cause, rows = self._polls.between(since, until)
        else:
            cause = f"{thread_of(one)} was in {blocker['name']} (`{blocker['context'] or '?'}`)"
            rows = (int(blocker["row"]),)
        return {"cause": cause, "cause_rows": rows}

    def end(self) -> Seen:
        """See ``Fold``."""
        if self._tool:
            return Seen(facts={"tool": True})
        findings: list[Finding] = []
        doubts: list[str] = []
        for group in self._groups.groups():
            one = next((one for one in group.shown if one["cause"]), None)
            if one is None:
                # A host that gives QEMU no processor looks like this.
                worst, lasted = group.worst, show(group.worst["gap"], "ns")
                doubts.append(
                    f"`{worst['context']}` waited {lasted} for what the recording has not"
                )
                continue
            since, until = int(one["idle_since"]), int(one["ended_ns"])
            findings.append(
                Finding(
                    "starvation",
                    self._trace,
                    f"`{one['context'] or hex(one['ctx'])}` was not dispatched for"
                    f" {show(until - since, 'ns')} while {one['name']} was pending in it"
                    f" ({times(group.count)} over {self._threshold}): {one['cause']}",
                    **place_of(one),
                    time_ns=until,
                    value=until - since,
                    unit="ns",
                    rows=tuple(sorted({*group.rows, *one["cause_rows"]})),
                    count=group.count,
                    instance=one["index"],
                )
            )
        return Seen(findings, doubts, {"waited": self._groups.count})


@dataclass
class _Span:
    """Polls since a moment: how many, the first and last row, the last time, the longest gap."""

    since: int
    count: int = 0
    first_row: int = 0
    last_row: int = 0
    last_ns: int = 0
    gap_ns: int = 0

    def add(self, time: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> _Span:
        """With some more, in order."""
        if not len(time):
            return self
        begin = self.last_ns if self.count else self.since
        return _Span(
            self.since,
            self.count + len(time),
            self.first_row if self.count else int(row[0]),
            int(row[-1]),
            int(time[-1]),
            max(self.gap_ns, int(np.diff(time, prepend=begin).max())),
        )


class _Polls:
    """What vCPU threads did all the while: inside aio_poll() they hold the BQL."""

    def __init__(self) -> None:
        # Since what was pending at the end of the last part.
        self._spans: dict[int, _Span] = {}
        self._time = self._row = np.empty(0, np.int64)

    def begin(self, part: Part) -> None:
        """Those of the part."""
        polled = on_vcpus(part.runs, part.own_runs)
        self._time = polled["time_ns"].to_numpy(np.int64)
        self._row = polled["row"].to_numpy(np.int64)

    def end(self, part: Part) -> None:
        """What the next part may ask for."""
        self._spans = {since: self._since(since) for since in part.since.tolist()}
        self._time = self._row = np.empty(0, np.int64)

    def _since(self, since: int, until: int | None = None) -> _Span:
        first = int(self._time.searchsorted(since))
        end = len(self._time) if until is None else int(self._time.searchsorted(until))
        known = self._spans.get(since, _Span(since))
        return known.add(self._time[first:end], self._row[first:end])

    def between(self, since: int, until: int) -> tuple[str, tuple[int, ...]]:
        """What they did meanwhile, in words, and the first and the last row of it; empty when they
        did not all the while."""
        span = self._since(since, until)
        if not span.count or max(span.gap_ns, until - span.last_ns) * 2 > until - since:
            return "", ()
        text = f"vCPU threads ran {span.count:,} bottom halves inside aio_poll(), with the BQL held"
        return text, (span.first_row, span.last_row)


def waiting(trace: Frames, part: Part, threshold: Threshold) -> pd.DataFrame:
    """The part's own instances that ran later than that, with nothing lost meanwhile."""
    instances = part.instances
    wait = filled(instances["wait_ns"])
    late = (wait >= max(threshold.value, 1)) & (instances["end"] == "run").to_numpy()
    late = late & ((instances["verdict"] != "inconclusive").to_numpy())
    columns = ["name", "context", "ctx", "tid", "thread", "role", "scheduled_ns", "ended_ns",
               "wait_ns", "scheduled_row", "ended_row", "scheduled_by_tid"]  # fmt: skip
    found = own_instances(part, late, columns)
    lost = disturbed(filled(found["scheduled_ns"]), filled(found["ended_ns"]), trace.losses)
    # A bottom half that the recorder only saw pending has no thread that scheduled it.
    seen = filled(found["scheduled_by_tid"]) > 0
    return found[~lost & seen]


def _idle_since(part: Part, found: pd.DataFrame) -> npt.NDArray[np.int64]:
    """For each of them since when its context had not been dispatched when it ran: since the end
    of the run before it, if that is later than its schedule. Where that end is not known it may
    have been just now."""
    runs = part.runs
    since = filled(found["scheduled_ns"]).copy()
    contexts = found["context"].astype(object).to_numpy()
    ended = filled(found["ended_ns"])
    for context in set(contexts):
        own = (runs["context"] == context).to_numpy()
        began = runs["time_ns"].to_numpy(np.int64)[own]
        until = np.maximum.accumulate(part.latest_ends[own])
        asked = np.flatnonzero(contexts == context)
        before = began.searchsorted(ended[asked], side="left")
        last = np.where(before > 0, until[np.maximum(before, 1) - 1], 0)
        since[asked] = np.maximum(np.maximum(since[asked], last), part.idle.get(str(context), 0))
    return since


LINT = Lint(
    name="starvation",
    sentence="a context had work to do, and nobody dispatched it",
    threshold=Threshold(100e6, "ns"),
    why="how long; 0.1 s is what a person at a console or a QMP client notices",
    needs="--all",
    evidence="the schedule and the late run of what waited, and the run that was in the way",
    source="Proxmox savevm-async, March 2025; de252f7993; RFC of 5 June 2024",
    fold=Starvation,
    qmp=False,
)
