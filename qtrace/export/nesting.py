"""Which stretches of threads can be drawn one inside the other."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.arrays import Numbers
from qtrace.analysis.brackets import Mask, match, numbered

LAST = int(np.iinfo(np.int64).max)


class Nesting:
    """Stretches of a recording, which may come part by part; those of a thread in the order of
    their beginning. One that crosses another one of its thread cannot be drawn, nor can that."""

    def __init__(self) -> None:
        # What is open: row, thread, the moment, and how long it is; and what is to end.
        self._opens = self._closes = np.empty((4, 0), np.int64)
        # Until when each thread has been in any.
        self._reach: dict[int, int] = {}
        self._crossing: list[Numbers] = []

    def add(self, thread: Numbers, begin: Numbers, end: Numbers, row: Numbers, until: int) -> None:
        """Those that begin up to a moment; what has no end is none."""
        known = np.flatnonzero(end > begin)
        own = known[self._touched(thread[known], begin[known], end[known], until)]
        more = np.stack([row[own], thread[own], begin[own], (end - begin)[own]])
        ending = np.stack([row[own], thread[own], end[own], (end - begin)[own]])
        opens = np.concatenate([self._opens, more], axis=1)
        closes = np.concatenate([self._closes, ending], axis=1)
        now = closes[2] <= until
        self._closes = closes[:, ~now]
        self._opens = self._matched(opens, closes[:, now])

    def _touched(self, thread: Numbers, begin: Numbers, end: Numbers, until: int) -> Mask:
        """Those that share a moment with another one, as far as is known."""
        found = np.ones(len(thread), np.bool_)
        for tid in np.unique(thread).tolist():
            own = np.flatnonzero(thread == tid)
            reach = np.maximum.accumulate(np.append(self._reach.get(tid, 0), end[own]))
            self._reach[tid] = int(reach[-1])
            alone = (begin[own] >= reach[:-1]) & (end[own] <= np.append(begin[own[1:]], until))
            found[own] = ~alone
        return found

    def _matched(self, opens: Numbers, closes: Numbers) -> Numbers:
        """What is open still."""
        both = np.concatenate([opens, closes], axis=1)
        row, thread, time, length = both
        is_open = np.arange(both.shape[1]) < opens.shape[1]
        group = numbered(thread)
        # At one time what ends comes first, the shorter before the longer; then what begins, the
        # longer before the shorter.
        order = np.lexsort((np.where(is_open, -length, length), is_open, time, group))
        first, last = match(group[order], is_open[order], order)
        paired = (first >= 0) & (last >= 0)
        first, last, left = first[paired], last[paired], first[(first >= 0) & (last < 0)]
        across = row[first] != row[last]
        self._crossing += [row[first[across]], row[last[across]]]
        return both[:, np.sort(left)]

    def crossing(self) -> Numbers:
        """The rows of those that cannot be drawn, in order."""
        return np.unique(np.concatenate([np.empty(0, np.int64), *self._crossing]))
