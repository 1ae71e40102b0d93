"""QMP commands: their steps, one row for each command, and what carried out which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers
from qtrace.analysis.losses import disturbed
from qtrace.analysis.stuck import Away
from qtrace.trace.details import detail_columns
from qtrace.trace.reader import TraceFile

# A command answered faster, with nothing else going on, has no rows (docs/trace-format.md).
LEFT_OUT_NS = 10_000_000
# The steps of a command, as columns are called.
STEPS = {"command": "taken", "begin": "begun", "end": "ended", "reply": "replied"}


def qmp_rows(events: pd.DataFrame) -> pd.DataFrame:
    """The ``qmp`` rows, in time order, with ``step`` (text) and ``number`` (int64, -1 for none):
    the steps of QMP commands, and the events STOP and RESUME."""
    rows = events[(events["event"] == "qmp").to_numpy()]
    return rows.assign(**detail_columns(rows["detail"], {"step": "", "number": -1}))


def commands_of(steps: pd.DataFrame) -> pd.DataFrame:
    """One row per command, in the order in which they were first seen.

    Args:
        steps: of ``qmp_rows``.

    Returns:
        ``number`` (int64), ``name``; ``tid``, ``thread``, ``role`` of who sent the reply (of its
        last row, where there is none); when it was taken off the queue, begun, done and answered,
        as ``taken_ns``, ``begun_ns``, ``ended_ns``, ``replied_ns``, and the rows of these,
        ``taken_row`` and so on (all Int64, absent where no row tells).
    """
    rows = _first_of_each_step(steps)
    last = rows.drop_duplicates("number", keep="last").set_index("number")
    found = last.loc[rows["number"].unique(), ["name", "tid", "thread", "role"]]
    by_step = {step: own.set_index("number") for step, own in rows.groupby("step")}
    for column, source in (("ns", "time_ns"), ("row", "row")):
        for step, name in STEPS.items():
            own = by_step[step][source].reindex(found.index) if step in by_step else pd.NA
            found[f"{name}_{column}"] = own
            found[f"{name}_{column}"] = found[f"{name}_{column}"].astype("Int64")
    return found.reset_index()


def answered(commands: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Those of ``commands_of`` whose answer was seen to exist and to be sent.

    Args:
        losses: of rows of QMP, as of ``Frames``: a step that was noted in such an interval may be
            another command's.
    """
    found = commands.dropna(subset=["ended_ns", "replied_ns"])
    known = ("ended_ns", "replied_ns", "ended_row", "replied_row")
    found = found.astype(dict.fromkeys(known, "int64"))
    began = found["taken_ns"].fillna(found["begun_ns"]).fillna(found["ended_ns"])
    lost = disturbed(began.to_numpy(np.int64), found["replied_ns"].to_numpy(), losses)
    return found[~lost].reset_index(drop=True)


def carried_out(
    trace: TraceFile,
    steps: pd.DataFrame,
    away: Iterable[Away],
    losses: pd.DataFrame,
    watched: int,
) -> pd.DataFrame:
    """One row per command that has its ``begin`` row, in time order.

    Args:
        steps: of ``qmp_rows``.
        away: when its threads were seen not to come back.
        losses: of rows of QMP.
        watched: until when all was (``watched_until``).

    Returns:
        ``number``, ``name``, ``tid``, ``thread``, ``role``; ``time_ns``, ``begun_row``;
        ``until_ns`` (of its end, or until when it provably had not ended), ``ended_row`` (Int64,
        absent for none), ``took`` (from the one to the other) and ``ended``; ``sure`` is false
        where a step may have been lost meanwhile: it may be another command's.
    """
    rows = _first_of_each_step(steps)
    begun = rows[(rows["step"] == "begin").to_numpy()]
    ended = rows[(rows["step"] == "end").to_numpy()].set_index("number")
    number = begun["number"].to_numpy()
    end = ended["time_ns"].reindex(number).astype("Int64")
    done = end.notna().to_numpy()
    found = begun[["number", "name", "tid", "thread", "role", "time_ns"]].reset_index(drop=True)
    until = _until(trace, found, away, watched)
    until[done] = end[done].to_numpy(np.int64)
    began = found["time_ns"].to_numpy(np.int64)
    until = np.maximum(until, began)
    return found.assign(
        begun_row=begun["row"].to_numpy(np.int64),
        ended_row=ended["row"].reindex(number).astype("Int64").array,
        until_ns=until,
        took=until - began,
        ended=done,
        sure=~disturbed(began, until, losses),
    )


def longest_inside(commands: pd.DataFrame, run: dict[str, Any]) -> dict[str, Any] | None:
    """Of ``carried_out`` the command that took longest inside a run (a row of ``runs`` with
    ``took``), when it took half of it or more."""
    began = commands["time_ns"].to_numpy(np.int64)
    own = (commands["sure"] & (commands["tid"] == run["tid"])).to_numpy()
    own = own & (began >= run["time_ns"]) & (began < run["time_ns"] + run["took"])
    if not own.any():
        return None
    within = commands[own]
    longest = within.iloc[int(within["took"].to_numpy().argmax())]
    if 2 * longest["took"] < run["took"]:
        return None
    return {str(key): longest[key] for key in commands.columns}


def _first_of_each_step(steps: pd.DataFrame) -> pd.DataFrame:
    return steps[(steps["number"] >= 0).to_numpy()].drop_duplicates(["number", "step"])


def _until(
    trace: TraceFile, found: pd.DataFrame, away: Iterable[Away], watched: int
) -> npt.NDArray[np.int64]:
    """For each command until when its end would surely have been recorded."""
    if trace.complete or trace.exit is not None:
        return np.full(len(found), watched, np.int64)
    # Cut off: rows of QMP are written as they come, an end before the last of them would have
    # been. And looks may show its thread in it.
    events = trace.frame
    times = events["time_ns"].to_numpy(np.int64)[(events["event"] == "qmp").to_numpy()]
    until: Numbers = np.full(len(found), times[-1] if len(times) else 0, np.int64)
    names, tids = found["name"].astype(str), found["tid"].to_numpy(np.int64)
    for one in away:
        same = (tids == one.tid) & (("QMP " + names) == one.command).to_numpy()
        until[same] = np.maximum(until[same], one.last_ns)
    return until
