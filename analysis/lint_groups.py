"""What lints make of many instances or runs: one finding for each group, told of its worst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.lint import SHOWN


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


def grouped(
    found: pd.DataFrame, by: Sequence[str], value: str, rows: Sequence[str]
) -> Iterator[Group]:
    """The groups of a frame, with the worst of each first.

    Args:
        by: what makes a group.
        value: the column by which the largest is the worst.
        rows: columns with numbers of event rows.
    """
    for _key, part in found.groupby(list(by), observed=True, sort=False):
        most = part.nlargest(SHOWN, value)
        shown = most.assign(index=most.index).to_dict("records")
        numbers = {int(number) for column in rows for number in most[column].dropna()}
        yield Group(
            tuple({str(key): value for key, value in one.items()} for one in shown),
            len(part),
            tuple(sorted(numbers)),
        )


def place_of(one: Any) -> dict[str, Any]:
    """What a Finding tells of its worst occurrence, a row of these frames or of ``replies``."""
    return {
        "name": str(one["name"]),
        "context": str(one.get("context", "")),
        "tid": 0 if pd.isna(one["tid"]) else int(one["tid"]),
        "thread": str(one["thread"]),
        "role": str(one["role"]),
    }


def instance_of(run: Any) -> int | None:
    """The instance that ran in a row of ``runs``, when it is known."""
    return None if pd.isna(run["instance"]) else int(run["instance"])


def busiest(instances: pd.DataFrame, runs: pd.DataFrame, at: int, rate: float) -> dict[str, Any]:
    """What a Finding tells of ``runs`` that came at most so many a second, from ``at`` on.

    Its evidence are the first of these, and their schedules.
    """
    one, shown = runs.iloc[at], runs.iloc[at : at + SHOWN]
    scheduled = filled(instances["scheduled_row"].take(filled(shown["instance"])))
    return {
        "time_ns": int(one["time_ns"]),
        "value": rate,
        "unit": "/s",
        "rows": tuple(sorted({int(row) for row in (*shown["row"], *scheduled)})),
        "count": len(runs),
        "instance": int(one["instance"]),
    }
