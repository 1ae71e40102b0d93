"""The plain calls that stand beside the bottom halves: save_snapshot, load_snapshot, vm_stop."""

from __future__ import annotations

import pandas as pd

from qtrace.analysis.report_types import Call, CallStack
from qtrace.analysis.stacks import functions, stack_facts
from qtrace.analysis.verdicts import effective_role
from qtrace.trace.reader import TraceFile

# The commonest stacks of a call; all of them are in the trace.
MOST = 5


def summarize_calls(traces: list[TraceFile]) -> list[Call]:
    """How often each watched function was called, by which kind of thread, and from where.

    Returns:
        For each function: ``name``, ``count``, ``roles`` (count by thread role) and
        ``stacks``, the commonest first: ``role``, ``thread``, ``tid`` of its first call,
        ``count``, ``stack`` (leaf first).
    """
    parts = [_calls(trace) for trace in traces]
    calls = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if calls.empty:
        return []
    same = calls.groupby(["name", "role", "stack"], observed=True, sort=False)
    groups = same.agg(
        count=("tid", "size"), thread=("thread", "first"), tid=("tid", "first")
    ).reset_index()
    groups = groups.sort_values("count", ascending=False, kind="stable")
    summary: list[Call] = []
    for name, rows in groups.groupby("name", sort=True):
        roles = rows.groupby("role", observed=True)["count"].sum()
        shown = rows[["role", "thread", "tid", "count", "stack"]].head(MOST)
        stacks: list[CallStack] = [
            {
                "role": str(role),
                "thread": str(thread),
                "tid": int(tid),
                "count": int(count),
                "stack": functions(str(stack)),
            }
            for role, thread, tid, count, stack in shown.to_numpy().tolist()
        ]
        summary.append(
            {
                "name": str(name),
                "count": int(rows["count"].sum()),
                "roles": {str(role): int(roles[role]) for role in roles.index},
                "stacks": stacks,
            }
        )
    return summary


def _calls(trace: TraceFile) -> pd.DataFrame:
    rows = trace.frame[trace.frame["event"] == "call"]
    vcpu_frames = stack_facts(rows["stack"])["vcpu"].to_numpy(bool)
    role = effective_role(rows["role"], rows["tid"], vcpu_frames, trace)
    texts = rows[["name", "thread", "stack"]].astype(object)
    return texts.assign(role=role, tid=rows["tid"])
