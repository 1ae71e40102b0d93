"""Who took part: the AioContexts and the threads of a recording, a row each."""

from __future__ import annotations

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


def threads_of(events: pd.DataFrame, instances: pd.DataFrame) -> pd.DataFrame:
    """Columns: ``tid``, ``thread`` (its last name), ``role``, ``events``, ``scheduled``, ``ran``,
    ``first_ns``, ``last_ns``. Rows about the recording itself (tid 0) are left out.
    """
    own = events[(events["tid"] != 0).to_numpy()]
    found = own.groupby("tid", sort=True).agg(
        thread=("thread", "last"),
        role=("role", "last"),
        events=("tid", "size"),
        first_ns=("time_ns", "first"),
        last_ns=("time_ns", "last"),
    )
    ended = instances[(instances["end"] == "run").to_numpy()]
    # The stack may have shown more than the recorder knew.
    role = ended.drop_duplicates("tid", keep="last").set_index("tid")["role"]
    better = role.astype(object).reindex(found.index)
    found["role"] = pd.Categorical(better.where(better.notna(), found["role"].astype(object)))
    found["thread"] = pd.Categorical(found["thread"])
    counts = (instances["scheduled_by_tid"].value_counts(), ended["tid"].value_counts())
    for column, count in zip(("scheduled", "ran"), counts, strict=True):
        found[column] = count.reindex(found.index).fillna(0).astype(np.int64)
    order = ["thread", "role", "events", "scheduled", "ran", "first_ns", "last_ns"]
    return found[order].reset_index()
