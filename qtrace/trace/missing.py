"""Rows that a recorder wrote and the file has no more: cut out by an editor, a filter, a disk."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from qtrace.event_kinds import COUNTED
from qtrace.trace.schema import escape


def missing_rows(
    frame: pd.DataFrame, detach: dict[str, Any], only: Collection[str] | None
) -> dict[str, int]:
    """How many of them, by probe (``run snapshot_save_job_bh``); empty when all are there.

    Args:
        only: events of bottom halves of other names were left out.
    """
    hits = detach.get("hits")
    wanted: dict[tuple[str, str], int] = {}
    for label, count in hits.items() if isinstance(hits, dict) else ():
        kind, _, name = label.partition(" ")
        read = only is None or name in only or kind == "call"
        if kind in COUNTED and read and type(count) is int:
            wanted[kind, escape(name)] = count
    names = {name for _kind, name in wanted}
    own = frame.loc[frame["name"].isin(names).to_numpy(), ["event", "name"]]
    found = own.groupby(["event", "name"], observed=True).size().to_dict()
    short = {probe: count - int(found.get(probe, 0)) for probe, count in wanted.items()}
    return {" ".join(probe): count for probe, count in short.items() if count > 0}


def as_losses(losses: pd.DataFrame, count: int) -> pd.DataFrame:
    """With so many more, lost at a time nobody knows."""
    if not count:
        return losses
    limits = np.iinfo(np.int64)
    more = {"since_ns": limits.min, "until_ns": limits.max, "count": count, "every": False}
    whole = pd.concat([losses, pd.DataFrame([more])], ignore_index=True)
    return whole.astype(losses.dtypes.to_dict())
