"""A context with work to do that nobody dispatched."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, place_of
from qtrace.analysis.losses import disturbed
from qtrace.analysis.qemu_facts import is_one_task
from qtrace.analysis.runs import in_the_way, on_vcpus
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Instances for which no bottom half of their context ran for longer than the threshold.

    One that is behind another of its own context waits for that one (lint head-of-line).
    """
    if is_one_task(trace.header):
        return Seen(facts={"tool": True})
    found = waiting(trace, threshold)
    idle_since = _idle_since(trace, found)
    found = found.assign(idle_since=idle_since, gap=filled(found["ended_ns"]) - idle_since)
    found = found[(found["gap"] >= threshold.value).to_numpy()]
    polled = on_vcpus(trace.runs)
    findings: list[Finding] = []
    doubts: list[str] = []
    rows = ("scheduled_row", "ended_row")
    for group in grouped(found, ("context", "ctx", "tid"), "gap", rows):
        for one in group.shown:
            since, until = int(one["idle_since"]), int(one["ended_ns"])
            cause, cause_rows = _cause(trace, polled, one)
            if cause:
                break
        else:
            # A host that gives QEMU no processor looks like this.
            worst, lasted = group.worst, show(group.worst["gap"], "ns")
            doubts.append(f"`{worst['context']}` waited {lasted} for what the recording has not")
            continue
        findings.append(
            Finding(
                "starvation",
                trace,
                f"`{one['context'] or hex(one['ctx'])}` was not dispatched for"
                f" {show(until - since, 'ns')} while {one['name']} was pending in it"
                f" ({times(group.count)} over {threshold}): {cause}",
                **place_of(one),
                time_ns=until,
                value=until - since,
                unit="ns",
                rows=tuple(sorted({*group.rows, *cause_rows})),
                count=group.count,
                instance=one["index"],
            )
        )
    return Seen(findings, doubts, {"waited": len(found)})


def _cause(trace: Frames, polled: pd.DataFrame, one: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """What kept its context from being dispatched, in words, and the rows that show it."""
    since, until, tid = int(one["idle_since"]), int(one["ended_ns"]), int(one["tid"])
    blocker = in_the_way(trace.runs, tid, since, until)
    if blocker is not None:
        cause = f"{thread_of(one)} was in {blocker['name']} (`{blocker['context'] or '?'}`)"
        return cause, (int(blocker["row"]),)
    return _vcpus(polled, since, until)


def _vcpus(polled: pd.DataFrame, since: int, until: int) -> tuple[str, tuple[int, ...]]:
    """What vCPU threads did all the while: inside aio_poll() they hold the BQL."""
    time = polled["time_ns"].to_numpy(np.int64)
    first, end = time.searchsorted(since), time.searchsorted(until)
    if first == end:
        return "", ()
    gaps = np.diff(time[first:end], prepend=since, append=until)
    if gaps.max() * 2 > until - since:
        return "", ()
    text = f"vCPU threads ran {end - first:,} bottom halves inside aio_poll(), with the BQL held"
    return text, (int(polled["row"].iloc[first]), int(polled["row"].iloc[end - 1]))


def waiting(trace: Frames, threshold: Threshold) -> pd.DataFrame:
    """The instances that ran later than that, with nothing lost meanwhile."""
    instances = trace.instances
    wait = filled(instances["wait_ns"])
    late = (wait >= max(threshold.value, 1)) & (instances["end"] == "run").to_numpy()
    late = late & ((instances["verdict"] != "inconclusive").to_numpy())
    columns = ["name", "context", "ctx", "tid", "thread", "role", "scheduled_ns", "ended_ns",
               "wait_ns", "scheduled_row", "ended_row", "scheduled_by_tid"]  # fmt: skip
    found = instances.loc[late, columns]
    lost = disturbed(filled(found["scheduled_ns"]), filled(found["ended_ns"]), trace.losses)
    # A bottom half that the recorder only saw pending has no thread that scheduled it.
    seen = filled(found["scheduled_by_tid"]) > 0
    return found[~lost & seen]


def _idle_since(trace: Frames, found: pd.DataFrame) -> npt.NDArray[np.int64]:
    """For each of them since when its context had not been dispatched when it ran: since the end
    of the run before it, if that is later than its schedule. Where that end is not known it may
    have been just now."""
    runs = trace.runs
    since = filled(found["scheduled_ns"]).copy()
    contexts = found["context"].astype(object).to_numpy()
    ended = filled(found["ended_ns"])
    for context in set(contexts):
        own = (runs["context"] == context).to_numpy()
        began = runs["time_ns"].to_numpy(np.int64)[own]
        until = np.maximum.accumulate(trace.latest_ends[own])
        asked = np.flatnonzero(contexts == context)
        before = began.searchsorted(ended[asked], side="left")
        last = np.where(before > 0, until[np.maximum(before, 1) - 1], 0)
        since[asked] = np.maximum(since[asked], last)
    return since


LINT = Lint(
    name="starvation",
    sentence="a context had work to do, and nobody dispatched it",
    threshold=Threshold(100e6, "ns"),
    why="how long; 0.1 s is what a person at a console or a QMP client notices",
    needs="--all",
    evidence="the schedule and the late run of what waited, and the run that was in the way",
    source="Proxmox savevm-async, March 2025; de252f7993; RFC of 5 June 2024",
    check=check,
    qmp=False,
)
