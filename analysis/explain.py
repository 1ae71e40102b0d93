"""What became of one instance and why, in prose with its evidence."""

from __future__ import annotations

from typing import Any

import pandas as pd

from qtrace.analysis.stacks import functions
from qtrace.trace.reader import Trace


def explain(instance: pd.Series, trace: Trace) -> str:
    """Several sentences about a row of ``instances``."""
    one: dict[str, Any] = dict(instance)
    name, context = one["name"] or "?", one["context"] or "an unknown context"
    sentences = []
    if pd.isna(one["scheduled_ns"]):
        sentences.append(f"{name} was scheduled into `{context}` before the recording began.")
    else:
        by = f"{one['scheduled_by_thread']} ({one['scheduled_by_role'] or 'role unknown'}"
        sentences.append(f"{by}, tid {one['scheduled_by_tid']}) scheduled {name} into `{context}`.")
    if one["end"] == "run":
        chain = " <- ".join(functions(one["stack"]))
        sentences.append(
            f"{one['thread']} ({one['role'] or 'role unknown'}, tid {one['tid']}) ran it: {chain}."
        )
    sentences.append(f"Verdict: {one['verdict']}{': ' + one['reason'] if one['reason'] else ''}.")
    rows = [int(one[key]) for key in ("scheduled_row", "ended_row") if not pd.isna(one[key])]
    sentences.append(f"Rows {', '.join(map(str, rows))} of {trace.path}.")
    return "\n".join(sentences)
