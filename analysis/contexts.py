"""The AioContexts of a recording, a row each."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd


def contexts_of(instances: pd.DataFrame) -> pd.DataFrame:
    """Columns: ``context``, ``ctx``, ``instances``, ``ran``, ``cancelled``, ``pending``,
    ``threads`` (how many ran it), ``runner`` (Int64, the tid that ran most of it), ``wait_p50_ns``,
    ``wait_max_ns`` (Int64). The busiest first.
    """
    ran = (instances["end"] == "run").to_numpy(np.bool_)
    work = pd.DataFrame(
        {
            "context": instances["context"],
            "ctx": instances["ctx"],
            "ran": ran,
            "cancelled": instances["end"].isin(("cancel", "delete")),
            "pending": instances["end"] == "",
            "tid": instances["tid"].where(ran),
            "wait": instances["wait_ns"].where(ran),
        }
    )
    groups = work.groupby(["context", "ctx"], observed=True, sort=False)
    found = groups.agg(
        instances=("ran", "size"),
        ran=("ran", "sum"),
        cancelled=("cancelled", "sum"),
        pending=("pending", "sum"),
        threads=("tid", "nunique"),
        wait_max_ns=("wait", "max"),
    )
    counts = work.groupby(["context", "ctx", "tid"], observed=True).size().reset_index(name="n")
    most = counts.sort_values("n", kind="stable").drop_duplicates(["context", "ctx"], keep="last")
    found["runner"] = most.set_index(["context", "ctx"])["tid"]
    found["wait_p50_ns"] = groups["wait"].median().round().astype("Int64")
    return found.reset_index().sort_values(
        "instances", ascending=False, kind="stable", ignore_index=True
    )


class Runners:
    """Who ran most of each context, of a recording that may come part by part."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int, int]] = Counter()

    def add(self, instances: pd.DataFrame) -> None:
        """Some more instances."""
        ran = instances[(instances["end"] == "run").to_numpy(np.bool_)]
        counts = ran.groupby(["context", "ctx", "tid"], observed=True).size().reset_index(name="n")
        for context, ctx, tid, count in counts.astype(object).to_numpy().tolist():
            self._counts[str(context), int(ctx), int(tid)] += int(count)

    def of(self, context: str, ctx: int) -> int | None:
        """The thread's id; None where nobody ran any of it."""
        own = [
            (count, tid)
            for (name, address, tid), count in self._counts.items()
            if (name, address) == (context, ctx)
        ]
        return max(own)[1] if own else None
