"""Which instances somebody asks about: by number, by a row of the file, or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qtrace.analysis.names import names_of
from qtrace.errors import NoSuchInstance

if TYPE_CHECKING:
    from qtrace.analysis.traces import AnalysedTrace

REMEDY = "qtrace explain TRACE --list shows them"


def pick(
    trace: AnalysedTrace,
    numbers: Sequence[int] = (),
    rows: Sequence[int] = (),
    patterns: Sequence[str] = (),
    every: bool = False,
) -> list[int]:
    """The instances that are asked for: indexes into ``instances``.

    Args:
        numbers: these.
        rows: those that these rows of the file belong to.
        patterns: without numbers and rows: globs of bottom halves, instead of those that the
            recording watched; of each the first instance with its worst verdict.
        every: all their instances.

    Raises:
        NoSuchInstance, NoMatch
    """
    found, count = [], len(trace.instances)
    for number in numbers:
        if not 0 <= number < count:
            raise NoSuchInstance(
                f"no instance {number}: {trace.path} has {count:,}, counted from 0", REMEDY
            )
        found.append(number)
    for row in rows:
        number = _of_row(trace, row)
        if number < 0:
            raise NoSuchInstance(f"row {row} of {trace.path} belongs to no instance", REMEDY)
        found.append(number)
    if numbers or rows:
        return list(dict.fromkeys(found))
    code = trace.instances["verdict"].array.codes
    for name in names_of([trace.trace], patterns):
        own = np.flatnonzero((trace.instances["name"] == name).to_numpy())
        if len(own):
            # The categories are in the order of severity.
            found += own.tolist() if every else [int(own[code[own].argmin()])]
    return found


def _of_row(trace: AnalysedTrace, row: int) -> int:
    """The instance whose schedule, end, or return a row is; -1 for none."""
    instances, events = trace.instances, trace.events
    for column in ("scheduled_row", "ended_row"):
        found = np.flatnonzero((instances[column] == row).to_numpy(np.bool_, na_value=False))
        if len(found):
            return int(found[0])
    one = events[((events["row"] == row) & (events["event"] == "return")).to_numpy()]
    if one.empty:
        return -1
    runs = trace.runs
    own = (runs["tid"] == one["tid"].iloc[0]) & (runs["end_ns"] == one["time_ns"].iloc[0])
    found = runs["instance"].to_numpy(np.int64)[own.to_numpy()]
    return int(found[0]) if len(found) else -1
