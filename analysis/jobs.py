"""Jobs: one row for each, with when it was in which state."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qtrace.trace.details import detail_column

# The states with a time of their own; a job is in "null" when it has been dismissed.
STATES = {"created": "created", "running": "running", "concluded": "concluded", "null": "dismissed"}


def jobs_of(events: pd.DataFrame) -> pd.DataFrame:
    """One row per job, in the order in which they were first seen; an id that is created again is
    another job.

    Returns:
        ``name`` (its id), ``status`` (the last that was seen), ``time_ns`` and ``last_ns`` (int64,
        of its first and last change of state); ``created_ns``, ``running_ns``, ``concluded_ns``,
        ``dismissed_ns`` (when it came into the state first) and the rows of these, ``created_row``
        and so on (Int64, absent where it did not, or not in the recording).
    """
    rows = events[(events["event"] == "job").to_numpy()]
    name = rows["name"].astype(object)
    status = pd.Series(detail_column(rows["detail"], "status", ""), rows.index, dtype=object)
    number = (status == "created").groupby(name).cumsum()
    job = pd.factorize(pd.MultiIndex.from_arrays([name, number]))[0]
    groups = rows.assign(status=status, job=job).groupby("job", sort=True)
    found = groups.agg(
        name=("name", "first"),
        status=("status", "last"),
        time_ns=("time_ns", "first"),
        last_ns=("time_ns", "last"),
    )
    first = rows.assign(status=status, job=job).drop_duplicates(["job", "status"])
    for column, source in (("ns", "time_ns"), ("row", "row")):
        for state, what in STATES.items():
            own = first[(first["status"] == state).to_numpy()].set_index("job")[source]
            found[f"{what}_{column}"] = own.reindex(found.index).astype("Int64")
    text = pd.CategoricalDtype(rows["name"].cat.categories)
    found = found.astype({"name": text, "status": "category"})
    return found.astype({"time_ns": np.int64, "last_ns": np.int64}).reset_index(drop=True)
