"""The threads of a recording, a row each."""

from __future__ import annotations

import numpy as np
import pandas as pd


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
