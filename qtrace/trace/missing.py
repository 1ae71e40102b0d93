"""Rows that a recorder wrote and the file has no more: cut out by an editor, a filter, a disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qtrace.event_kinds import COUNTED
from qtrace.trace.gaps import Gap
from qtrace.trace.schema import escape


def missing_rows(
    frame: pd.DataFrame,
    detach: dict[str, Any],
    only: Collection[str] | None,
    gaps: Sequence[Gap] = (),
) -> dict[str, int]:
    """How many of them, by probe (``run snapshot_save_job_bh``); empty when all are there.

    Args:
        only: events of bottom halves of other names were left out.
        gaps: what was in them is missing, and is told already.
    """
    hits = detach.get("hits")
    if not isinstance(hits, dict):
        return {}
    names = {escape(label.partition(" ")[2]) for label in hits}
    own = frame.loc[frame["name"].isin(names).to_numpy(), ["event", "name"]]
    return missing_of(counts_of(own), detach, only, gaps)


def counts_of(rows: pd.DataFrame) -> dict[tuple[str, str], int]:
    """How many there are of each kind and name."""
    found: Any = rows.groupby(["event", "name"], observed=True).size().to_dict()
    counts: dict[tuple[str, str], int] = found
    return counts


def missing_of(
    counts: Mapping[tuple[str, str], int],
    detach: dict[str, Any],
    only: Collection[str] | None,
    gaps: Sequence[Gap] = (),
) -> dict[str, int]:
    """As ``missing_rows``, by how many rows there are of each kind and name."""
    hits = detach.get("hits")
    wanted: dict[tuple[str, str], int] = {}
    for label, count in hits.items() if isinstance(hits, dict) else ():
        kind, _, name = label.partition(" ")
        read = only is None or name in only or kind == "call"
        if kind in COUNTED and read and type(count) is int:
            there = count - sum(gap.rows.get(label, 0) for gap in gaps if gap.rows is not None)
            wanted[kind, escape(name)] = there
    short = {probe: count - counts.get(probe, 0) for probe, count in wanted.items()}
    found_short = {" ".join(probe): count for probe, count in short.items() if count > 0}
    # They may be those of which nothing but their number is known.
    untold = sum(gap.count for gap in gaps if gap.rows is None)
    return found_short if sum(found_short.values()) > untold else {}


def as_losses(losses: pd.DataFrame, count: int) -> pd.DataFrame:
    """With so many more, lost at a time nobody knows."""
    if not count:
        return losses
    limits = np.iinfo(np.int64)
    more = {"since_ns": limits.min, "until_ns": limits.max, "count": count, "every": False}
    whole = pd.concat([losses, pd.DataFrame([more])], ignore_index=True)
    return whole.astype(losses.dtypes.to_dict())
