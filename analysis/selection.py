"""Which bottom halves, and which of their instances, somebody asks about."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.errors import NoMatch, NoSuchInstance

REMEDY = "qtrace explain TRACE --list shows them"


def select_names(traces: Sequence[Frames], patterns: Sequence[str]) -> list[str]:
    """The watched ones in their order (or, with none, all), or those that match a pattern.

    Raises:
        NoMatch: a pattern matches none.
    """
    watched = dict.fromkeys(name for trace in traces for name in trace.watched)
    seen = dict.fromkeys(name for trace in traces for name in trace.names)
    if not patterns:
        frames = [trace.file.frame for trace in traces]
        blocked = pd.concat([rows.loc[rows["event"] == "blocked", "name"] for rows in frames])
        # Those of a thread that is away name none.
        stranded = [name for name in blocked.drop_duplicates() if name]
        globs = [glob for trace in traces for glob in trace.header.get("by_all", [])]
        meant = [name for name in seen if any(fnmatch.fnmatchcase(name, g) for g in globs)]
        asked = watched | dict.fromkeys([*meant, *stranded])
        return list(asked if asked or globs else seen)
    known = list(watched | seen)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise NoMatch(
                f"no bottom half of these traces matches {pattern!r}",
                f"the nearest names are: {', '.join(near) or 'none, they hold no bottom half'}",
            )
        chosen |= dict.fromkeys(found)
    return [name for name in known if name in chosen]


def select_instances(
    trace: Frames,
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
    for name in select_names([trace], patterns):
        own = np.flatnonzero((trace.instances["name"] == name).to_numpy())
        if len(own):
            # The categories are in the order of severity.
            found += own.tolist() if every else [int(own[code[own].argmin()])]
    return found


def _of_row(trace: Frames, row: int) -> int:
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
    ended = filled(runs["end_ns"]) == one["time_ns"].iloc[0]
    found = filled(runs["instance"])[(runs["tid"] == one["tid"].iloc[0]).to_numpy() & ended]
    return int(found[0]) if len(found) else -1
