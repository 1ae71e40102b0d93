"""A bottom half that nobody waited for ran inside a nested event loop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Groups, own_instances, place_of
from qtrace.analysis.qemu_facts import AWAITED, COMPLETIONS, GRAPH, WRAPPED
from qtrace.analysis.stacks import frames_of, poll_caller
from qtrace.analysis.wording import thread_of, times

COLUMNS = ("name", "context", "tid", "thread", "role", "ended_ns", "scheduled_row", "ended_row",
           "stack", "deciding_frame")  # fmt: skip


class NestedLoop:
    """Runs with the verdict ``nested-poll``, less what such a poll waits for.

    On an IOThread a poll is nested when its run lies inside another one.
    """

    def __init__(self, trace: Frames, _threshold: Threshold) -> None:
        self._trace = trace
        rows = ("scheduled_row", "ended_row")
        self._groups = Groups(("name", "context", "tid", "stack"), "worst", rows)
        self._nested = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        instances, runs = part.instances, part.runs
        nested = (instances["verdict"] == "nested-poll").to_numpy()
        inner = filled(runs["instance"])[runs["outer"].notna().to_numpy()]
        deeper = np.zeros(len(instances), np.bool_)
        deeper[inner[inner >= 0]] = True
        nested = nested | deeper & (instances["verdict"] == "iothread").to_numpy()
        usual = instances["name"].isin(COMPLETIONS | GRAPH).to_numpy(copy=True)
        usual[_for_own_coroutine(runs)] = True
        own = nested & ~usual & part.own
        found = own_instances(part, own, COLUMNS)
        worst = -found["ended_ns"].to_numpy(np.int64)
        self._groups.add(found.assign(worst=worst, inside=_outer_names(runs, own)))
        self._nested += int((nested & part.own).sum())

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = []
        for group in self._groups.groups():
            one = group.worst
            chain, poll, _device = frames_of(one)
            waits = poll_caller(chain, poll) or "an unknown caller"
            if waits in AWAITED.get(one["name"], ()):
                continue
            inside = f", inside {one['inside']}" if one["inside"] else ""
            findings.append(
                Finding(
                    "nested-loop",
                    self._trace,
                    f"{one['name']} (`{one['context'] or '?'}`) ran {times(group.count)} in a"
                    f" nested event loop of {thread_of(one)} while {waits} waits{inside}",
                    **place_of(one),
                    time_ns=int(one["ended_ns"]),
                    value=group.count,
                    rows=group.rows,
                    count=group.count,
                    instance=one["index"],
                    facts={"waits": waits, "inside": one["inside"]},
                )
            )
        return Seen(findings, (), {"nested": self._nested})


def _outer_names(runs: pd.DataFrame, instances: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """For each of these instances the name of the outermost run around its own; empty for none."""
    instance, outer = filled(runs["instance"]), filled(runs["outer"])
    run = np.full(len(instances) + 1, -1)
    run[instance] = np.arange(len(runs))
    at = np.append(outer, -1)[run[:-1][instances]]
    names = np.append(runs["name"].astype(object).to_numpy(), "")
    return np.asarray(np.where(at >= 0, names[at], ""), object)


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
    fold=NestedLoop,
    qmp=False,
)
