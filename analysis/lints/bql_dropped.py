"""A callback gave the BQL away inside a device access or a nested event loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.lint import Finding, Lint, Seen, Threshold
from qtrace.analysis.lint_groups import grouped, instance_of, place_of
from qtrace.analysis.qemu_facts import COMPLETIONS, JOINS, MAIN_CONTEXTS
from qtrace.analysis.runs import run_at
from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.wording import thread_of, times

NESTED = ("vcpu-poll", "foreign-poll", "nested-poll")
COLUMNS = ["name", "context", "tid", "thread", "role", "time_ns", "row", "instance"]


def check(trace: Frames, _threshold: Threshold) -> Seen:
    """Two things prove it, both of a callback that runs inside a poll.

    Another thread began to run a bottom half of the main thread's contexts before it had returned:
    those run with the BQL, and so does the callback itself. Or the callback waited for the end of
    a thread: migration_cleanup_bh() joins the migration thread, which needs the BQL to end, and
    gives it away for that.

    A callback that gives it away to a vCPU, which enters a device and runs no bottom half, is not
    seen by the first: where a callback's end is not known it is doubted.
    """
    nested = _nested(trace)
    findings = [*_overlaps(trace, nested), *_joins(trace, nested)]
    unknown = (filled(nested["end_ns"]) < 0) & ~nested["name"].isin(COMPLETIONS).to_numpy()
    doubts = [f"when {unknown.sum():,} of them returned is not known"] if unknown.any() else []
    return Seen(findings, doubts, {"nested": len(nested)})


def _nested(trace: Frames) -> pd.DataFrame:
    """The runs inside polls that have the BQL; their index is that of ``runs``."""
    runs = trace.runs
    instance = filled(runs["instance"])
    inside = trace.instances["verdict"].isin(NESTED).to_numpy()
    with_bql = (instance >= 0) & runs["context"].isin(MAIN_CONTEXTS).to_numpy()
    found: pd.DataFrame = runs[with_bql & inside[instance]]
    return found


def _overlaps(trace: Frames, nested: pd.DataFrame) -> list[Finding]:
    """One for each callback and thread that others ran bottom halves during."""
    runs = trace.runs
    others = runs[runs["context"].isin(MAIN_CONTEXTS).to_numpy()]
    time, tid = others["time_ns"].to_numpy(np.int64), others["tid"].to_numpy(np.int64)
    first = time.searchsorted(nested["time_ns"].to_numpy(np.int64), side="right")
    last = time.searchsorted(filled(nested["end_ns"]), side="left")
    # By the other thread's run, of callbacks inside each other the innermost, which began last.
    during: dict[int, int] = {}
    for at, own, low, high in zip(
        nested.index, nested["tid"].to_numpy(np.int64), first, last, strict=True
    ):
        during |= dict.fromkeys((low + np.flatnonzero(tid[low:high] != own)).tolist(), int(at))
    meanwhile = others.iloc[list(during)]
    found = runs.loc[list(during.values()), COLUMNS].assign(
        other=meanwhile["row"].to_numpy(), ran=meanwhile["name"].to_numpy(),
        by=[thread_of(one) for one in meanwhile.to_dict("records")],
    )  # fmt: skip
    # Of one callback the first that another thread ran shows it.
    found = found.drop_duplicates("row")
    return [
        _finding(
            trace, one, rows, count,
            f"gave the BQL away {times(count)} inside a poll of {thread_of(one)}: before it had"
            f" returned, {one['by']} ran {one['ran']}",
            {"proof": "overlap", "meanwhile": str(one["ran"])},
        )
        for one, rows, count in _groups(found, "other")
    ]  # fmt: skip


def _joins(trace: Frames, nested: pd.DataFrame) -> list[Finding]:
    """One for each callback and thread that waited for other threads' ends."""
    events, runs = trace.events, trace.runs
    calls = events[((events["event"] == "call") & events["name"].isin(JOINS)).to_numpy()]
    calls = calls[(stack_facts(calls["stack"])["dispatcher"] == "poll").to_numpy()]
    moment = calls["time_ns"].to_numpy(np.int64)
    at = run_at(runs, filled(calls["tid"]), moment, trace.losses)
    inside = np.isin(at, nested.index.to_numpy())
    found = runs.loc[at[inside], COLUMNS].assign(
        other=calls["row"].to_numpy()[inside], call=calls["name"].to_numpy()[inside]
    )
    return [
        _finding(
            trace, one, rows, count,
            f"waited for the end of a thread {times(count)}, in {one['call']}(), inside a poll of"
            f" {thread_of(one)}",
            {"proof": "call", "call": str(one["call"])},
        )
        for one, rows, count in _groups(found, "other")
    ]  # fmt: skip


def _groups(found: pd.DataFrame, proof: str) -> list[tuple[dict[str, Any], tuple[int, ...], int]]:
    """By callback and thread: the first, the rows that prove it, and how often it did."""
    first = found.assign(first=-found["time_ns"].to_numpy(np.int64)).reset_index(drop=True)
    groups = grouped(first, ("name", "context", "tid"), "first", ("row", proof))
    return [(group.worst, group.rows, group.count) for group in groups]


def _finding(
    trace: Frames, one: Any, rows: tuple[int, ...], count: int, what: str, facts: dict[str, Any]
) -> Finding:
    return Finding(
        "bql-dropped",
        trace,
        f"{one['name']} (`{one['context']}`) {what}",
        **place_of(one),
        time_ns=int(one["time_ns"]),
        value=count,
        rows=rows,
        count=count,
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
    check=check,
    qmp=False,
)
