"""The two ends of a recording: what only some of its probes have noted is no part of it.

Probes are taken off one after the other, which takes some tenths of a second. A recorder leaves out
what they note meanwhile; files of before it did have the rows: runs whose schedule nobody noted, so
that another schedule of long ago seems to be theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.event_kinds import BOTTOM_HALF, OWN_PROBE, PROBED

Mask = npt.NDArray[np.bool_]


def beyond(frame: pd.DataFrame, header: dict[str, Any], detach: dict[str, Any], gone: bool) -> Mask:
    """Which rows probes have noted after the recording's end.

    Args:
        frame: in time order.
        gone: the target ended first; then all its probes did at the same moment.
    """
    time = frame["time_ns"].to_numpy()
    # What a look found pending has no thread.
    probed = frame["event"].isin(PROBED).to_numpy() & (frame["tid"] != 0).to_numpy()
    found = np.zeros(len(frame), np.bool_)
    until = detach.get("until_ns")
    if type(until) is int and not gone:
        found = probed & (time >= until)
    if "all" in header:
        own = probed & _is_alls(frame, header)
        every = detach.get("all")
        dropped = every.get("dropped_ns") if isinstance(every, dict) else None
        if type(dropped) is int:
            found |= own & (time >= dropped)
        elif detach and type(until) is not int and not gone:
            found |= own & (time >= _schedules_vanish(frame, own))
    return found


def tells_its_end(header: dict[str, Any], detach: dict[str, Any], gone: bool) -> bool:
    """Whether ``beyond`` is a matter of each row alone: of a part of a trace it is the same."""
    return "all" not in header or not detach or gone or bool(_told_ends(detach))


def may_be_beyond(latest_ns: int, detach: dict[str, Any]) -> bool:
    """Whether there may be such rows.

    Args:
        latest_ns: when the last of all that probes have noted was.
    """
    return any(latest_ns >= end for end in _told_ends(detach))


def _told_ends(detach: dict[str, Any]) -> list[int]:
    """When probes ended, as far as the recorder says."""
    every = detach.get("all")
    told = (detach.get("until_ns"), every.get("dropped_ns") if isinstance(every, dict) else None)
    return [one for one in told if type(one) is int]


def latest_of_probes(frame: pd.DataFrame) -> int:
    """When the last was that a probe has noted; -1 where none has."""
    times = frame["time_ns"][frame["event"].isin(PROBED)]
    return int(times.max()) if len(times) else -1


def _is_alls(frame: pd.DataFrame, header: dict[str, Any]) -> Mask:
    """The rows of the probes of `--all`: of some kinds a watched bottom half has its own."""
    watched = [item["name"] for item in header["watched"]]
    other = ~(frame["name"].isin(watched) & frame["event"].isin(OWN_PROBE)).to_numpy()
    return frame["event"].isin(BOTTOM_HALF).to_numpy() & other


def _schedules_vanish(frame: pd.DataFrame, own: Mask) -> int:
    """When the first thing ran whose schedule nobody noted any more, of a recording that does not
    tell when it ended: the probes on schedules went off first."""
    own = own & (frame["bh"] != 0).to_numpy()
    schedules = own & (frame["event"] == "schedule").to_numpy()
    never = int(np.iinfo(np.int64).max)
    if not schedules.any():
        return never
    lives = schedules | (own & (frame["event"] == "run").to_numpy())
    part = frame.loc[lives, ["bh", "callback", "time_ns"]]
    opens = pd.Series(schedules[lives], index=part.index)
    before = opens.groupby([part["bh"], part["callback"]]).shift(fill_value=False)
    late = part["time_ns"] > part["time_ns"][opens].iloc[-1]
    alone = part["time_ns"][late & ~opens & ~before.astype(bool)]
    return int(alone.iloc[0]) if len(alone) else never
