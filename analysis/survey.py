"""What only a whole recording tells, gathered from it table by table.

Which bottom halves have a pointer or flags (analysis/instances.py), which names there are, and
which runs took so long that a part of the recording may end inside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import code_of
from qtrace.analysis.event_order import RUN, SCHEDULE
from qtrace.analysis.instances import ENQUEUES, KINDS, Lives
from qtrace.analysis.timing import returns_of, undisturbed
from qtrace.trace.details import detail_table

RUN_COLUMNS = ["tid", "bh", "callback", "row", "time_ns"]
RUN_KINDS = pd.CategoricalDtype(["run", "return"])


class Survey:
    """``see`` all tables; then ask."""

    def __init__(self, long_ns: int) -> None:
        """``long_ns``: runs that took so long are told by ``long_runs``."""
        self._long_ns = long_ns
        self._pointed: set[tuple[int, int]] = set()
        self._flagged: set[tuple[int, int, str]] = set()
        self._unread: set[tuple[int, int, int]] = set()
        self._first: dict[str, tuple[int, int]] = {}
        self._open: pd.DataFrame | None = None
        self._long: list[npt.NDArray[np.int64]] = []
        # Callbacks that looks found pending, and those whose returns were recorded.
        self.looked_for: frozenset[int] = frozenset()
        self.returned: frozenset[int] = frozenset()

    def see(self, frame: pd.DataFrame) -> None:
        """The next table. Its times may lie before some that were seen already."""
        kind = code_of(frame["event"], KINDS)
        self._see_halves(frame, kind)
        self._see_returns(frame)

    def _see_halves(self, frame: pd.DataFrame, kind: npt.NDArray[np.int8]) -> None:
        rows = kind >= 0
        columns = ["bh", "callback", "opaque"]
        pointed = rows & (kind != RUN) & (frame["bh"] != 0).to_numpy()
        self._pointed |= _tuples(frame.loc[pointed, columns[:2]])
        self._unread |= _tuples(frame.loc[rows & (frame["ctx"] == 0).to_numpy(), columns])
        codes = frame["detail"].array.codes
        enqueued = np.isin(detail_table(frame["detail"], "enqueue", ""), list(ENQUEUES))[codes]
        own = frame.loc[enqueued & pointed & (kind == SCHEDULE), ["bh", "callback", "name"]]
        named = own["name"].astype(object).where(own["callback"] == 0, "")
        self._flagged |= _tuples(own.assign(name=named))
        again = detail_table(frame["detail"], "pending_already", False)[codes]
        found = frame.loc[again & (kind == SCHEDULE), "callback"]
        self.looked_for |= frozenset(found.tolist())
        first = frame.loc[rows, ["name", "time_ns", "row"]].drop_duplicates("name")
        for name, *when in _rows(first):
            self._first[name] = min(self._first.get(name, tuple(when)), tuple(when))

    def _see_returns(self, frame: pd.DataFrame) -> None:
        kind = code_of(frame["event"], ("run", "return"))
        self.returned |= frozenset(frame.loc[kind == 1, "callback"].unique().tolist())
        # Each table has categories of its own.
        rows = frame.loc[kind >= 0, RUN_COLUMNS]
        rows = rows.assign(event=pd.Categorical.from_codes(kind[kind >= 0], dtype=RUN_KINDS))
        if self._open is not None and len(self._open):
            rows = pd.concat([self._open, rows], ignore_index=True)
        begin, end = returns_of(rows)
        times, numbers = rows["time_ns"].to_numpy(), rows["row"].to_numpy()
        pairs = (begin >= 0) & (end >= 0)
        long = begin[pairs], end[pairs]
        took = times[long[1]] - times[long[0]] >= self._long_ns
        begun, ended = long[0][took], long[1][took]
        self._long.append(np.stack([numbers[begun], times[begun], times[ended], numbers[ended]]))
        self._open = rows.iloc[np.sort(begin[(begin >= 0) & (end < 0)])]

    def lives(self, blocked: pd.DataFrame) -> Lives:
        """What pairing needs; ``blocked`` are the rows of that kind."""
        pointed = frozenset(self._pointed)
        blind = frozenset(
            (callback, opaque)
            for bh, callback, opaque in self._unread
            if not bh or (bh, callback) not in pointed
        )
        return Lives(pointed, frozenset(self._flagged), blind, blocked)

    def names(self) -> list[str]:
        """The bottom halves, in the order in which they were seen."""
        return sorted(self._first, key=lambda name: self._first[name])

    def long_runs(self, losses: pd.DataFrame) -> pd.DataFrame:
        """As ``run_durations``."""
        found = np.concatenate(self._long, axis=1) if self._long else np.empty((4, 0), np.int64)
        rows, began, ended, end_rows = found
        return undisturbed(rows, began, ended, end_rows, losses)


def _tuples(frame: pd.DataFrame) -> set[Any]:
    return set(_rows(frame.drop_duplicates()))


def _rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """The few rows of a frame."""
    return zip(*(frame[column].tolist() for column in frame.columns), strict=True)
