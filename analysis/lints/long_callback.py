"""A callback that keeps its thread's event loop, and mostly the BQL, for too long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled, find_rows, nullable
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import RUN_COLUMNS, Groups, instance_of, place_of, told_runs
from qtrace.analysis.qemu_facts import MAIN_CONTEXTS, is_one_task
from qtrace.analysis.qmp_commands import longest_inside
from qtrace.analysis.runs import unfinished
from qtrace.analysis.wording import thread_of, times
from qtrace.units import show

# Taking the probes off takes a fifth of a second: what is older than that did not end with them.
DISARMING_NS = 2_000_000_000


COLUMNS = (*RUN_COLUMNS, "end_ns")


class LongCallback:
    """Runs that took longer than the threshold, with what waited for their end.

    One that had not returned when the recording ended counts for as long as that is certain
    (analysis/runs.py).
    """

    def __init__(self, trace: Frames, threshold: Threshold) -> None:
        self._trace, self._threshold = trace, threshold
        self._tool = is_one_task(trace.header)
        self._groups = Groups(("name", "context", "tid"), "took", ("row", "end_row"))
        # What waited for the end of the worst of each, by its row.
        self._behind: dict[int, _Behind] = {}
        self._ended = self._without_end = self._unfinished = 0
        self._doubts: list[str] = []

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        if self._tool:
            return
        runs = part.runs
        end = filled(runs["end_ns"])
        took = end - runs["time_ns"].to_numpy(np.int64)
        asked = part.own_runs & (end >= 0)
        self._ended += int(asked.sum())
        self._without_end += int((part.own_runs & (end < 0)).sum())
        open_still = self._still_open(part)
        took[open_still.index] = open_still.to_numpy()
        asked[open_still.index] = True
        long = asked & (took >= self._threshold.value) & (took > 0)
        found = told_runs(part, long, COLUMNS)
        found = found.assign(took=took[long], returned=end[long] >= 0)
        found["end_row"] = _ends(part, found)
        found["end_ns"] = (found["time_ns"] + found["took"]).to_numpy()
        self._groups.add(found)
        worst = [group.worst for group in self._groups.groups()]
        self._behind = {
            one["index"]: self._behind.get(one["index"]) or _Behind(one) for one in worst
        }
        for behind in self._behind.values():
            behind.add(part)

    def _still_open(self, part: Part) -> pd.Series:
        if not part.is_last:
            return pd.Series([], dtype=np.int64)
        trace = self._trace
        found = unfinished(
            part.runs, part.latest_ends, trace.file, part.watched_until, trace.all_losses
        )
        self._unfinished = len(found)
        self._doubts = _doubts(trace, part, found, self._threshold)
        return found

    def end(self) -> Seen:
        """See ``Fold``."""
        if self._tool:
            return Seen(facts={"tool": True})
        findings = []
        for group in self._groups.groups():
            one = group.worst
            behind = self._behind[one["index"]].found
            command = longest_inside(self._trace.carried_out, one)
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
            open_end = f" or longer: it had not returned when {_last(self._trace)}"
            findings.append(
                Finding(
                    "long-callback",
                    self._trace,
                    f"{one['name']} (`{one['context'] or '?'}`) kept {thread_of(one)}{holds} for"
                    f" {show(one['took'], 'ns')}{'' if one['returned'] else open_end}"
                    f" ({times(group.count)} over {self._threshold}){ran}{waited}",
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
        facts = {"runs": self._ended, "without_end": self._without_end,
                 "unfinished": self._unfinished}  # fmt: skip
        return Seen(findings, self._doubts, facts)


def _doubts(trace: Frames, part: Part, open_still: pd.Series, threshold: Threshold) -> list[str]:
    """What an older recording, which does not say when its probes went off, leaves open."""
    at = open_still.index.to_numpy(np.int64)
    began = part.runs["time_ns"].take(at)
    age = part.events["time_ns"].iloc[-1] - began.to_numpy(np.int64)
    unsure = age >= max(threshold.value, DISARMING_NS)
    unsure &= (open_still < threshold.value).to_numpy()
    if trace.exit is not None or not unsure.any():
        return []
    name = part.runs["name"].iloc[int(at[unsure][0])]
    return [f"whether {name} was still running at the end is not known"]


def _last(trace: Frames) -> str:
    return "the recording ended" if trace.exit is None else "the target ended"


def _ends(part: Part, runs: pd.DataFrame) -> Any:
    """The rows at which these runs end; for one that did not return the recording's last row."""
    returned = part.durations
    at, found = find_rows(returned["row"].to_numpy(np.int64), runs["row"].to_numpy(np.int64))
    rows = np.full(len(runs), int(part.events["row"].iloc[-1]))
    rows[found] = returned["end_row"].to_numpy(np.int64)[at]
    return nullable(rows)


class _Behind:
    """What was scheduled before a run's end and ran after it on the same thread, for the same
    loop: how many, and which waited longest meanwhile."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._run = run
        self.found: dict[str, Any] | None = None
        self._rank = (0, 0)

    def add(self, part: Part) -> None:
        """Those of a part."""
        run, instances = self._run, part.instances
        scheduled, ended = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
        waited = part.own & (scheduled >= 0) & (scheduled < run["end_ns"])
        waited = waited & (ended >= run["end_ns"])
        if not waited.any():
            return
        context = instances["context"]
        same = (
            context.isin(MAIN_CONTEXTS)
            if run["context"] in MAIN_CONTEXTS
            else context == run["context"]
        )
        at = np.flatnonzero(waited & same.to_numpy() & (instances["end"] == "run").to_numpy())
        if not len(at):
            return
        wait = run["end_ns"] - np.maximum(scheduled[at], run["time_ns"])
        # Of those that waited as long the first.
        most = np.lexsort((part.number[at], -wait))[0]
        known = self.found or {"count": 0, "wait_ns": -1}
        rank = (-int(wait[most]), int(part.number[at[most]]))
        if self.found is None or rank < self._rank:
            self._rank = rank
            known = known | {
                "name": str(instances["name"].iloc[at[most]]),
                "context": str(instances["context"].iloc[at[most]]),
                "wait_ns": int(wait[most]),
            }
        self.found = known | {"count": known["count"] + len(at)}


LINT = Lint(
    name="long-callback",
    sentence="a callback kept its thread, and mostly the BQL, for too long",
    threshold=Threshold(100e6, "ns"),
    why="how long a callback runs; 0.1 s is what a person at a console or a QMP client notices",
    needs="--all",
    evidence="the run and its return",
    source="1dc4718d84, 4af976ef39, 012b170173, 6910f04aa6",
    fold=LongCallback,
)
