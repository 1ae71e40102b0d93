"""A callback gave the BQL away inside a device access or a nested event loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import Group, Groups, instance_of, place_of, told_runs
from qtrace.analysis.qemu_facts import COMPLETIONS, JOINS, MAIN_CONTEXTS
from qtrace.analysis.runs import run_at
from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.wording import thread_of, times

NESTED = ("vcpu-poll", "foreign-poll", "nested-poll")
PLACE = ("name", "context", "tid")


class BqlDropped:
    """Two things prove it, both of a callback that runs inside a poll.

    Another thread began to run a bottom half of the main thread's contexts before it had returned:
    those run with the BQL, and so does the callback itself. Or the callback waited for the end of
    a thread: migration_cleanup_bh() joins the migration thread, which needs the BQL to end, and
    gives it away for that.

    A callback that gives it away to a vCPU, which enters a device and runs no bottom half, is not
    seen by the first: where a callback's end is not known it is doubted.
    """

    def __init__(self, trace: Frames, _threshold: Threshold) -> None:
        self._trace = trace
        self._overlaps = Groups(PLACE, "first", ("row", "other"))
        self._joins = Groups(PLACE, "first", ("row", "other"))
        # Of the callbacks that another part may show once more.
        self._shown: set[int] = set()
        self._nested = self._unknown = 0

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        runs = part.runs
        instance = filled(runs["instance"])
        inside = np.append(part.instances["verdict"].isin(NESTED).to_numpy(), False)
        nested = inside[instance] & runs["context"].isin(MAIN_CONTEXTS).to_numpy()
        own = nested & part.own_runs
        unknown = (filled(runs["end_ns"]) < 0) & ~runs["name"].isin(COMPLETIONS).to_numpy()
        self._nested += int(own.sum())
        self._unknown += int((unknown & own).sum())
        self._add_overlaps(part, nested)
        self._add_joins(part, nested)

    def _add_overlaps(self, part: Part, nested: npt.NDArray[np.bool_]) -> None:
        """What others ran before a callback had returned."""
        runs = part.runs
        main = runs["context"].isin(MAIN_CONTEXTS).to_numpy()
        others = np.flatnonzero(main & part.own_runs)
        time = runs["time_ns"].to_numpy(np.int64)
        tid = runs["tid"].to_numpy(np.int64)
        at = np.flatnonzero(nested)
        first = time[others].searchsorted(time[at], side="right")
        last = time[others].searchsorted(filled(runs["end_ns"])[at], side="left")
        # By the other thread's run, of callbacks inside each other the innermost, which began last.
        during: dict[int, int] = {}
        for one, low, high in zip(at.tolist(), first.tolist(), last.tolist(), strict=True):
            during |= dict.fromkeys(others[low:high][tid[others[low:high]] != tid[one]], one)
        rows = runs["row"].to_numpy(np.int64)
        # Of one callback the first that another thread ran shows it.
        shown: dict[int, int] = {}
        for other in sorted(during):
            if rows[during[other]] not in self._shown:
                shown.setdefault(during[other], int(other))
        found = told_runs(part, np.isin(np.arange(len(runs)), list(shown)))
        order = [shown[one] for one in sorted(shown)]
        meanwhile = runs.iloc[order]
        self._overlaps.add(
            found.assign(
                first=-found["time_ns"].to_numpy(np.int64),
                other=meanwhile["row"].to_numpy(), ran=meanwhile["name"].astype(object).to_numpy(),
                by=[thread_of(one) for one in meanwhile.to_dict("records")],
            ).set_axis(meanwhile["row"].to_numpy())
        )  # fmt: skip
        end = int(part.events["time_ns"].iloc[-1])
        goes_on = nested & (filled(runs["end_ns"]) > end)
        self._shown = (self._shown | set(rows[list(shown)].tolist())) & set(rows[goes_on].tolist())

    def _add_joins(self, part: Part, nested: npt.NDArray[np.bool_]) -> None:
        """Which waited for other threads' ends."""
        events = part.events.iloc[part.first_event :]
        calls = events[((events["event"] == "call") & events["name"].isin(JOINS)).to_numpy()]
        calls = calls[(stack_facts(calls["stack"])["dispatcher"] == "poll").to_numpy()]
        moment = calls["time_ns"].to_numpy(np.int64)
        at = run_at(part.runs, filled(calls["tid"]), moment, self._trace.losses)
        inside = (at >= 0) & np.append(nested, False)[at]
        found = told_runs(part, np.ones(len(part.runs), np.bool_)).iloc[at[inside]]
        calls = calls[inside]
        self._joins.add(
            found.assign(
                first=-found["time_ns"].to_numpy(np.int64), other=calls["row"].to_numpy(),
                call=calls["name"].astype(object).to_numpy(),
            ).set_axis(calls["row"].to_numpy())
        )  # fmt: skip

    def end(self) -> Seen:
        """See ``Fold``."""
        findings = [
            _finding(
                self._trace, group,
                f"gave the BQL away {times(group.count)} inside a poll of"
                f" {thread_of(group.worst)}: before it had returned, {group.worst['by']} ran"
                f" {group.worst['ran']}",
                {"proof": "overlap", "meanwhile": str(group.worst["ran"])},
            )
            for group in self._overlaps.groups()
        ]  # fmt: skip
        findings += [
            _finding(
                self._trace, group,
                f"waited for the end of a thread {times(group.count)}, in"
                f" {group.worst['call']}(), inside a poll of {thread_of(group.worst)}",
                {"proof": "call", "call": str(group.worst["call"])},
            )
            for group in self._joins.groups()
        ]  # fmt: skip
        unknown = self._unknown
        doubts = [f"when {unknown:,} of them returned is not known"] if unknown else []
        return Seen(findings, doubts, {"nested": self._nested})


def _finding(trace: Frames, group: Group, what: str, facts: dict[str, Any]) -> Finding:
    one = group.worst
    return Finding(
        "bql-dropped",
        trace,
        f"{one['name']} (`{one['context']}`) {what}",
        **place_of(one),
        time_ns=int(one["time_ns"]),
        value=group.count,
        rows=group.rows,
        count=group.count,
        # A vCPU thread polls because the guest has accessed a device, which others may enter now.
        level="error" if one["role"] == "vcpu" else "warning",
        instance=instance_of(one),
        facts=facts,
    )


LINT = Lint(
    name="bql-dropped",
    sentence="a callback gave the BQL away inside a device access or a nested event loop",
    threshold=None,
    why="",
    needs="--all",
    evidence="the callback's run, and what another thread ran before it had returned, or the call"
    " that waits for a thread",
    source="migration_cleanup_bh() in migration/migration.c; issue 2111; docs/hazards.md",
    fold=BqlDropped,
    qmp=False,
)
