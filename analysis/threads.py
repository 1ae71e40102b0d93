"""The threads of a recording, a row each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, code_of


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


class Names:
    """How threads are called and what they are for, of a recording that may come part by part."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[str, str]] = {}
        # By what the stack of the last instance that each ran has shown.
        self._better: dict[int, tuple[int, str]] = {}

    def add(self, events: pd.DataFrame, instances: pd.DataFrame, number: Numbers) -> None:
        """The next events, and instances with their numbers."""
        last = events[["tid", "thread", "role"]].drop_duplicates("tid", keep="last")
        self._last |= {tid: (str(name), str(role)) for tid, name, role in _rows(last)}
        ran = code_of(instances["end"], ("run",)) == 0
        better = instances[["tid", "role"]][ran].assign(number=number[ran])
        for tid, role, at in _rows(better.drop_duplicates("tid", keep="last")):
            self._better[tid] = max(self._better.get(tid, (-1, "")), (at, str(role)))

    def found(self) -> dict[int, tuple[str, str]]:
        """By its id the name and the role of each."""
        return {
            tid: (name, self._better[tid][1] if tid in self._better else role)
            for tid, (name, role) in self._last.items()
            if tid
        }


def _rows(frame: pd.DataFrame) -> list[list[Any]]:
    found: list[list[Any]] = frame.astype(object).to_numpy().tolist()
    return found
