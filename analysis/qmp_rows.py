"""The steps of QMP commands, and the events STOP and RESUME, of a recording."""

from __future__ import annotations

import pandas as pd

# A command answered faster, with nothing else going on, has no rows (docs/trace-format.md).
LEFT_OUT_NS = 10_000_000


def qmp_rows(events: pd.DataFrame) -> pd.DataFrame:
    """The ``qmp`` rows, in time order, with ``step`` (text) and ``number`` (int64, -1 for none)."""
    rows = events[(events["event"] == "qmp").to_numpy()]
    detail = rows["detail"].astype(object).astype(str)
    step = detail.str.extract(r'"step":"(\w+)"', expand=False).fillna("")
    number = detail.str.extract(r'"number":(\d+)', expand=False).fillna("-1").astype("int64")
    return rows.assign(step=step, number=number)


def replies(events: pd.DataFrame) -> pd.DataFrame:
    """One row per command whose answer was seen to exist and to be sent: ``name``, ``tid``,
    ``thread``, ``role``, ``ended_ns``, ``replied_ns``, ``end_row``, ``reply_row``."""
    rows = qmp_rows(events)
    columns = ["number", "name", "tid", "thread", "role", "time_ns", "row"]
    ends = rows.loc[(rows["step"] == "end").to_numpy(), columns]
    sent = rows.loc[(rows["step"] == "reply").to_numpy(), ["number", "time_ns", "row"]]
    ends = ends.rename(columns={"time_ns": "ended_ns", "row": "end_row"})
    sent = sent.rename(columns={"time_ns": "replied_ns", "row": "reply_row"})
    return ends.merge(sent, on="number")
