"""The steps of QMP commands, and the events STOP and RESUME, of a recording."""

from __future__ import annotations

import pandas as pd

# A command answered faster, with nothing else going on, has no rows (docs/trace-format.md).
LEFT_OUT_NS = 10_000_000
# The steps of a command, and the columns for their times and rows.
STEPS = (
    ("command", "taken_ns", ""),
    ("begin", "begun_ns", ""),
    ("end", "ended_ns", "end_row"),
    ("reply", "replied_ns", "reply_row"),
)


def qmp_rows(events: pd.DataFrame) -> pd.DataFrame:
    """The ``qmp`` rows, in time order, with ``step`` (text) and ``number`` (int64, -1 for none)."""
    rows = events[(events["event"] == "qmp").to_numpy()]
    detail = rows["detail"].astype(object).astype(str)
    step = detail.str.extract(r'"step":"(\w+)"', expand=False).fillna("")
    number = detail.str.extract(r'"number":(\d+)', expand=False).fillna("-1").astype("int64")
    return rows.assign(step=step, number=number)


def commands(events: pd.DataFrame) -> pd.DataFrame:
    """One row per command, in the order in which they were first seen.

    Returns:
        ``number``, ``name``; ``tid``, ``thread``, ``role`` of who sent the reply (of its last row,
        where there is none); when it was taken off the queue, begun, done and answered, as
        ``taken_ns``, ``begun_ns``, ``ended_ns``, ``replied_ns``, and the rows of the last two,
        ``end_row``, ``reply_row`` (all Int64, absent where no row tells).
    """
    rows = qmp_rows(events)
    rows = rows[(rows["number"] >= 0).to_numpy()].drop_duplicates(["number", "step"])
    last = rows.drop_duplicates("number", keep="last").set_index("number")
    found = last.loc[rows["number"].unique(), ["name", "tid", "thread", "role"]]
    steps = {step: own.set_index("number") for step, own in rows.groupby("step")}
    for step, when, row in STEPS:
        own = steps[step].reindex(found.index) if step in steps else None
        for column, source in ((when, "time_ns"), (row, "row")):
            if column:
                found[column] = pd.NA if own is None else own[source]
                found[column] = found[column].astype("Int64")
    return found.reset_index()


def replies(events: pd.DataFrame) -> pd.DataFrame:
    """Those of ``commands`` whose answer was seen to exist and to be sent."""
    found = commands(events).dropna(subset=["ended_ns", "replied_ns"])
    return found.astype(dict.fromkeys(("ended_ns", "replied_ns", "end_row", "reply_row"), "int64"))
