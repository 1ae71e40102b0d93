"""Schedules that a look at QEMU's memory found, of bottom halves whose schedule is recorded too.

While it records, a recorder looks at what stays pending, and writes a schedule row for what its
own probes have not seen scheduled. The probes of `--all` may have: they write to another file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Positions = npt.NDArray[np.int64]


def seen_again(frame: pd.DataFrame, schedules: npt.NDArray[np.bool_]) -> Positions:
    """The positions of such rows that stand for an instance which an earlier schedule began.

    It is the same when it has the same QEMUBH and nothing has ended it in between. The look that
    wrote the row knows the address; older recordings have it in its ``blocked`` row only.
    """
    detail = frame["detail"].array
    texts = detail.categories.astype(object)
    if not len(texts):
        return np.empty(0, np.int64)
    table = np.append(texts.str.contains('"pending_already":true', regex=False), [False])
    found = np.flatnonzero(table.astype(np.bool_)[detail.codes] & schedules)
    if not len(found):
        return found
    bh = frame["bh"].to_numpy()
    about = frame["callback"].isin(frame["callback"].to_numpy()[found]).to_numpy() & (bh != 0)
    blocked = about & (frame["event"] == "blocked").to_numpy()
    ends = frame["event"].isin(("run", "cancel", "delete")).to_numpy()
    lives = np.flatnonzero(about & (schedules | ends))
    keys = ["callback", "opaque"]
    again = []
    for row in found:
        one = frame.iloc[row]
        same = (frame[keys] == one[keys]).all(axis=1).to_numpy()
        own = pd.Series(str(one["detail"])).str.extract(r'"bh":"(0x[0-9a-f]+)"', expand=False)
        told = own.dropna().map(lambda text: int(text, 16)).to_numpy(np.uint64)
        pointers = told if len(told) else np.unique(bh[blocked & same])
        before = lives[(lives < row) & np.isin(bh[lives], pointers)]
        # A cancel or delete has no argument of its own to compare.
        last = pd.Series(before).groupby(bh[before]).last().to_numpy(np.int64)
        if (schedules[last] & same[last]).any():
            again.append(row)
    return np.array(again, np.int64)
