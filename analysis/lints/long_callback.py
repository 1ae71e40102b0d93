"""A callback that keeps its thread's event loop, and mostly the BQL, for too long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled, find_rows, nullable
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, instance_of, place_of
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS, is_one_task
from qtrace.analysis.qmp_commands import longest_inside
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show

# Taking the probes off takes a fifth of a second: what is older than that did not end with them.
DISARMING_NS = 2_000_000_000


def check(trace: Frames, threshold: Threshold) -> Seen:
    """Runs that took longer than the threshold, with what waited for their end.

    One that had not returned when the recording ended counts for as long as that is certain
    (analysis/runs.py).
    """
    if is_one_task(trace.header):
        return Seen(facts={"tool": True})
    runs = trace.runs
    end = filled(runs["end_ns"])
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
        command = longest_inside(trace.carried_out, one)
        ran = f": it ran QMP {command['name']}" if command else ""
        holds = " with the BQL" if one["context"] in MAIN_CONTEXTS else ""
        waited = ""
        if behind:
            several = behind["count"] > 1
            most = f", the longest of {behind['count']:,} bottom halves" if several else ""
            waited = (
                f"; {behind['name']} (`{behind['context'] or '?'}`) waited"
                f" {show(behind['wait_ns'], 'ns')} for {one['name']} to return{most}"
            )
        open_end = f" or longer: it had not returned when {_last(trace)}"
        findings.append(
            Finding(
                "long-callback",
                trace,
                f"{one['name']} (`{one['context'] or '?'}`) kept {thread_of(one)}{holds} for"
                f" {show(one['took'], 'ns')}{'' if one['returned'] else open_end}"
                f" ({times(group.count)} over {threshold}){ran}{waited}",
                **place_of(one),
                time_ns=int(one["time_ns"]),
                value=int(one["took"]),
                unit="ns",
                rows=group.rows,
                count=group.count,
                instance=instance_of(one),
                facts={
                    "behind": behind,
                    "returned": bool(one["returned"]),
                    "command": command["name"] if command else None,
                },
            )
        )
    known = int((end >= 0).sum())
    facts = {"runs": known, "without_end": len(runs) - known, "unfinished": len(open_still)}
    return Seen(findings, _doubts(trace, threshold), facts)


def _doubts(trace: Frames, threshold: Threshold) -> list[str]:
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


def _last(trace: Frames) -> str:
    return "the recording ended" if trace.exit is None else "the target ended"


def _ends(trace: Frames, runs: pd.DataFrame) -> Any:
    """The rows at which these runs end; for one that did not return the recording's last row."""
    events = trace.events
    until = filled(runs["end_ns"])
    ended = events[((events["event"] == "return") & events["time_ns"].isin(until)).to_numpy()]
    at, found = find_rows(ended["time_ns"].to_numpy(np.int64), until)
    rows = np.where(until < 0, int(events["row"].iloc[-1]), -1)
    rows[found] = ended["row"].to_numpy(np.int64)[at]
    return nullable(rows)


def _behind(instances: pd.DataFrame, run: dict[str, Any]) -> dict[str, Any] | None:
    """What was scheduled before this run's end and ran after it on the same thread, for the same
    loop: how many, and which waited longest meanwhile."""
    context = instances["context"]
    same = (
        context.isin(MAIN_CONTEXTS)
        if run["context"] in MAIN_CONTEXTS
        else context == run["context"]
    )
    scheduled, ended = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
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
        "context": str(instances["context"].iloc[at[most]]),
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
