"""A callback that keeps its thread's event loop, and mostly the BQL, for too long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.occurrences import grouped, instance_of, thread_of, times, where
from qtrace.analysis.runs import find_rows, whole
from qtrace.analysis.tools import is_tool
from qtrace.analysis.traces import AnalysedTrace
from qtrace.units import show

# The contexts whose bottom halves run with the BQL held.
BQL = ("main", "iohandler")
# Taking the probes off takes a fifth of a second: what is older than that did not end with them.
DISARMING_NS = 2_000_000_000


def check(trace: AnalysedTrace, threshold: Threshold) -> Seen:
    """Runs that took longer than the threshold, with what waited for their end.

    One that had not returned when the recording ended counts for as long as that is certain
    (analysis/unfinished.py).
    """
    if is_tool(trace.header):
        return Seen(facts={"tool": True})
    runs = trace.runs
    end = runs["end_ns"].to_numpy(np.int64)
    took = end - runs["time_ns"].to_numpy(np.int64)
    open_still = trace.unfinished
    took[open_still.index] = open_still.to_numpy()
    long = (took >= threshold.value) & (took > 0)
    found = runs[long].assign(took=took[long], returned=end[long] >= 0)
    found["end_row"] = _ends(trace, found)
    found["end_ns"] = (found["time_ns"] + found["took"]).to_numpy()
    findings = []
    for group in grouped(found, ("name", "context", "tid"), "took", ("row", "end_row")):
        one = group.worst
        behind = _behind(trace.instances, one)
        holds = " with the BQL" if one["context"] in BQL else ""
        waited = (
            f"; {behind['count']:,} bottom halves waited for its end, {behind['name']}"
            f" {show(behind['wait_ns'], 'ns')} long"
            if behind
            else ""
        )
        open_end = f" or longer: it had not returned when {_last(trace)}"
        findings.append(
            Finding(
                "long-callback",
                trace,
                f"{one['name']} (`{one['context'] or '?'}`) kept {thread_of(one)}{holds} for"
                f" {show(one['took'], 'ns')}{'' if one['returned'] else open_end}"
                f" ({times(group.count)} over {threshold}){waited}",
                **where(one),
                time_ns=int(one["time_ns"]),
                value=int(one["took"]),
                unit="ns",
                rows=group.rows,
                count=group.count,
                instance=instance_of(one),
                facts={"behind": behind, "returned": bool(one["returned"])},
            )
        )
    known = int((end >= 0).sum())
    facts = {"runs": known, "without_end": len(runs) - known, "unfinished": len(open_still)}
    return Seen(findings, _doubts(trace, threshold), facts)


def _doubts(trace: AnalysedTrace, threshold: Threshold) -> list[str]:
    """What an older recording, which does not say when its probes went off, leaves open."""
    open_still = trace.unfinished
    at = open_still.index.to_numpy(np.int64)
    began = trace.runs["time_ns"].take(at)
    age = trace.events["time_ns"].iloc[-1] - began.to_numpy(np.int64)
    unsure = age >= max(threshold.value, DISARMING_NS)
    unsure &= (open_still < threshold.value).to_numpy()
    if trace.exit is not None or not unsure.any():
        return []
    name = trace.runs["name"].iloc[int(at[unsure][0])]
    return [f"whether {name} was still running at the end is not known"]


def _last(trace: AnalysedTrace) -> str:
    return "the recording ended" if trace.exit is None else "the target ended"


def _ends(trace: AnalysedTrace, runs: pd.DataFrame) -> Any:
    """The rows at which these runs end; for one that did not return the recording's last row."""
    events = trace.events
    until = runs["end_ns"].to_numpy(np.int64)
    ended = events[((events["event"] == "return") & events["time_ns"].isin(until)).to_numpy()]
    at, found = find_rows(ended["time_ns"].to_numpy(np.int64), until)
    rows = np.where(until < 0, int(events["row"].iloc[-1]), -1)
    rows[found] = ended["row"].to_numpy(np.int64)[at]
    return rows


def _behind(instances: pd.DataFrame, run: dict[str, Any]) -> dict[str, Any] | None:
    """What was scheduled before this run's end and ran after it on the same thread, for the same
    loop: how many, and which waited longest meanwhile."""
    context = instances["context"]
    same = context.isin(BQL) if run["context"] in BQL else context == run["context"]
    scheduled, ended = whole(instances["scheduled_ns"]), whole(instances["ended_ns"])
    waited = same.to_numpy() & (scheduled >= 0) & (scheduled < run["end_ns"])
    waited = waited & ((ended >= run["end_ns"]) & (instances["end"] == "run").to_numpy())
    if not waited.any():
        return None
    at = np.flatnonzero(waited)
    wait = run["end_ns"] - np.maximum(scheduled[at], run["time_ns"])
    most = int(wait.argmax())
    return {
        "count": len(at),
        "name": str(instances["name"].iloc[at[most]]),
        "wait_ns": int(wait[most]),
    }


LINT = Lint(
    name="long-callback",
    sentence="a callback kept its thread, and mostly the BQL, for too long",
    threshold=Threshold(100e6, "ns"),
    why="how long a callback runs; 0.1 s is what a person at a console or a QMP client notices",
    needs="--all",
    evidence="the run and its return",
    source="1dc4718d84, 4af976ef39, 012b170173, 6910f04aa6",
    check=check,
)
