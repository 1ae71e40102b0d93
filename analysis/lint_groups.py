"""What lints make of many instances or runs: one finding for each group, told of its worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import union_categoricals

from qtrace.analysis.arrays import filled, nullable
from qtrace.analysis.frames import Part
from qtrace.analysis.lint import SHOWN

LAST = int(np.iinfo(np.int64).max)
RUN_COLUMNS = ("name", "context", "tid", "thread", "role", "time_ns", "row", "instance")


@dataclass(frozen=True)
class Group:
    """One group.

    Attributes:
        worst: the columns of the worst one; ``index`` is its label.
        shown: likewise of the worst ``SHOWN``, the worst first.
        count: of all of them.
        rows: numbers of the event rows of the worst ``SHOWN``, in order.
    """

    shown: tuple[dict[str, Any], ...]
    count: int
    rows: tuple[int, ...]

    @property
    def worst(self) -> dict[str, Any]:
        return self.shown[0]


class Groups:
    """The groups of rows that come part by part, with the worst of each first.

    Attributes:
        count: of all rows.
    """

    def __init__(
        self,
        by: Sequence[str],
        value: str,
        rows: Sequence[str],
    ) -> None:
        """
        Args:
            by: what makes a group.
            value: the column by which the largest is the worst.
            rows: columns with numbers of event rows.
        """
        self._by, self._value, self._rows = list(by), value, rows
        self._shown: dict[Any, list[dict[str, Any]]] = {}
        self._counts: Counter[Any] = Counter()
        self._first: dict[Any, int] = {}
        self.count = 0

    def add(
        self,
        found: pd.DataFrame,
        tell: Callable[[dict[str, Any]], dict[str, Any]] = lambda _one: {},
    ) -> None:
        """More rows; their index tells their order in the recording.

        Args:
            tell: more of those that are shown, asked for now.
        """
        self.count += len(found)
        for key, part in found.groupby(self._by, observed=True, sort=False):
            most = part.nlargest(SHOWN, self._value)
            new = [
                {str(name): value for name, value in one.items()}
                for one in most.assign(index=most.index).to_dict("records")
            ]
            known = self._shown.get(key, [])
            if len(known) == SHOWN:
                new = [one for one in new if self._rank(one) < self._rank(known[-1])]
            together = sorted([*known, *new], key=self._rank)[:SHOWN]
            self._shown[key] = [
                one if "told" in one else one | {"told": True, **tell(one)} for one in together
            ]
            self._counts[key] += len(part)
            self._first[key] = min(self._first.get(key, LAST), int(part.index.min()))

    def _rank(self, one: dict[str, Any]) -> tuple[Any, int]:
        return -one[self._value], int(one["index"])

    def groups(self) -> list[Group]:
        """In the order of their first rows."""
        return [
            Group(
                tuple(self._shown[key]),
                self._counts[key],
                tuple(sorted({
                    int(one[column]) for one in self._shown[key] for column in self._rows
                    if not pd.isna(one[column])
                })),
            )
            for key in sorted(self._first, key=lambda key: self._first[key])
        ]  # fmt: skip


def own_instances(part: Part, mask: npt.NDArray[np.bool_], columns: Sequence[str]) -> pd.DataFrame:
    """Those of the part's own instances, with their number in the recording as index."""
    own = mask & part.own
    found: pd.DataFrame = part.instances.loc[own, list(columns)]
    return found.set_axis(part.number[own])


def own_runs(
    part: Part, mask: npt.NDArray[np.bool_], columns: Sequence[str] = RUN_COLUMNS
) -> pd.DataFrame:
    """Those of the part's own runs, with their row as index; ``instance`` is its number."""
    return told_runs(part, mask & part.own_runs, columns)


def told_runs(
    part: Part, mask: npt.NDArray[np.bool_], columns: Sequence[str] = RUN_COLUMNS
) -> pd.DataFrame:
    """Likewise of all its runs."""
    found = part.runs.loc[mask, list(columns)].set_axis(part.runs["row"].to_numpy()[mask])
    at = filled(found["instance"])
    number = np.append(part.number, -1)[at]
    return found.assign(instance=nullable(number))


@dataclass
class Burst:
    """The rows from the beginning of a window on, ``SHOWN`` at least where there are so many.

    Attributes:
        held: how many the window holds; of ``beside`` in ``others``.
        rate: how many a second that is.
    """

    rows: pd.DataFrame
    held: int
    others: int
    rate: float


class Bursts:
    """Of rows that come part by part, for each group of them the window that holds most.

    Attributes:
        counts: of the rows of each group.
    """

    def __init__(self, by: Sequence[str], window_ns: int, least: float) -> None:
        """``least``: as many a second make a burst."""
        self._by, self._window, self._least = list(by), window_ns, least
        self._tail: pd.DataFrame | None = None
        self._beside: pd.DataFrame | None = None
        self.counts: Counter[Any] = Counter()
        self._found: dict[Any, Burst] = {}

    def add(self, rows: pd.DataFrame, part: Part, beside: pd.DataFrame | None = None) -> None:
        """More rows, in time order, with ``time_ns``.

        Args:
            beside: with the same columns ``by``: so many of these the window holds, too.
        """
        times = part.events["time_ns"]
        until = int(times.iloc[-1]) if len(times) else 0
        counts = rows.groupby(self._by, observed=True, sort=False).size()
        self.counts.update({_key(key): int(n) for key, n in counts.items()})
        rows = _after(self._tail, rows)
        others = rows if beside is None else _after(self._beside, beside)
        same: dict[Any, pd.DataFrame] = {}
        if beside is not None and len(rows):
            groups = others.groupby(self._by, observed=True, sort=False)
            same = {_key(key): own for key, own in groups}
        for key, own in rows.groupby(self._by, observed=True, sort=False):
            self._look(_key(key), own, same.get(_key(key)), None if part.is_last else until)
        if part.is_last:
            self._tail = self._beside = None
            return
        # A window that is not over is looked at again.
        self._tail = rows[(rows["time_ns"] > until - self._window).to_numpy()]
        if beside is not None:
            self._beside = others[(others["time_ns"] > until - self._window).to_numpy()]

    def _look(
        self, key: Any, own: pd.DataFrame, others: pd.DataFrame | None, until: int | None
    ) -> None:
        known = self._found.get(key)
        if known is not None and len(known.rows) < SHOWN:
            later = own[~own.index.isin(known.rows.index) & (own.index > known.rows.index[-1])]
            known.rows = _after(known.rows, later).head(SHOWN)
        time = own["time_ns"].to_numpy(np.int64)
        held = time.searchsorted(time + self._window, side="left") - np.arange(len(time))
        if until is not None:
            held = held[time + self._window <= until]
        if not len(held):
            return
        at = int(held.argmax())
        count = int(held[at])
        rate = count * 1e9 / self._window
        if rate < self._least or (known is not None and count <= known.held):
            return
        beside = time if others is None else others["time_ns"].to_numpy(np.int64)
        there = beside.searchsorted([time[at], time[at] + self._window])
        # A copy: else all of the part's rows would stay with them.
        rows = own.iloc[at : at + max(count, SHOWN)].copy()
        self._found[key] = Burst(rows, count, int(there[1] - there[0]), rate)

    def found(self) -> list[tuple[Any, Burst]]:
        """The bursts by their group, in the order of their first rows."""
        return sorted(self._found.items(), key=lambda one: int(one[1].rows.index[0]))


def _key(key: Any) -> tuple[Any, ...]:
    """pandas calls a group of one column by its value, or by a tuple of one."""
    return key if isinstance(key, tuple) else (key,)


def _after(rows: pd.DataFrame | None, more: pd.DataFrame) -> pd.DataFrame:
    """Both; texts that stood as categories stay so."""
    if rows is None or rows.empty:
        return more
    columns: dict[str, Any] = {}
    for column in more.columns:
        pair = [rows[column], more[column]]
        if isinstance(more[column].dtype, pd.CategoricalDtype):
            columns[str(column)] = union_categoricals(pair)
        else:
            columns[str(column)] = pd.concat(pair).array
    return pd.DataFrame(columns, index=rows.index.append(more.index))


def counted(column: pd.Series) -> Counter[str]:
    """How often each text is there."""
    found = column.astype(object).value_counts()
    return Counter({str(text): int(count) for text, count in found.items()})


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Those of the largest count first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def place_of(one: Any) -> dict[str, Any]:
    """What a Finding tells of its worst occurrence, a row of these frames or of ``replies``."""
    return {
        "name": str(one["name"]),
        "context": str(one.get("context", "")),
        "tid": 0 if pd.isna(one["tid"]) else int(one["tid"]),
        "thread": str(one["thread"]),
        "role": str(one["role"]),
    }


def numbered(part: Part, run: dict[str, Any]) -> dict[str, Any]:
    """A row of the part's runs, its instance by its number in the recording."""
    at = run["instance"]
    return run | {"instance": at if pd.isna(at) else int(part.number[int(at)])}


def instance_of(run: Any) -> int | None:
    """The instance that ran in a row of ``runs``, when it is known."""
    return None if pd.isna(run["instance"]) else int(run["instance"])


def with_schedules(part: Part, mask: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """``own_runs`` of those whose instance is known, with the ``scheduled_row`` of that."""
    runs = own_runs(part, mask)
    at = filled(part.runs["instance"])[mask & part.own_runs]
    return runs.assign(scheduled_row=filled(part.instances["scheduled_row"].take(at)))


def busiest(burst: Burst, count: int) -> dict[str, Any]:
    """What a Finding tells of so many runs (``with_schedules``) that came in a burst.

    Its evidence are the first of these, and their schedules.
    """
    one, shown = burst.rows.iloc[0], burst.rows.iloc[:SHOWN]
    return {
        "time_ns": int(one["time_ns"]),
        "value": burst.rate,
        "unit": "/s",
        "rows": tuple(sorted({int(row) for row in (*shown["row"], *shown["scheduled_row"])})),
        "count": count,
        "instance": int(one["instance"]),
    }
