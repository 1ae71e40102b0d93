"""Which bottom halves, and which of their instances, somebody asks about."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

import numpy as np
import pandas as pd

from qtrace.analysis.arrays import Numbers, filled, find_rows
from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.verdicts import SEVERITY
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
    """The instances that are asked for: indexes into ``instances``, see ``Selecting``.

    Raises:
        NoSuchInstance, NoMatch
    """
    view = trace.view
    selecting = Selecting(view, numbers, rows, patterns, every)
    fold_all(view, [selecting])
    return selecting.end()


class Selecting:
    """The instances that are asked for, looked for in a recording that may come part by part."""

    def __init__(
        self,
        trace: Frames,
        numbers: Sequence[int] = (),
        rows: Sequence[int] = (),
        patterns: Sequence[str] = (),
        every: bool = False,
    ) -> None:
        """
        Args:
            numbers: these.
            rows: those that these rows of the file belong to.
            patterns: without numbers and rows: globs of bottom halves, instead of those that the
                recording watched; of each the first instance with its worst verdict.
            every: all their instances.

        Raises:
            NoMatch
        """
        self._path, self._numbers, self._rows = trace.path, list(numbers), list(rows)
        self._names = [] if numbers or rows else select_names([trace], patterns)
        self._every = every
        self._count = 0
        self._of_row: dict[int, int] = {}
        # Of each bottom half its worst one, or the numbers of all.
        self._worst: dict[str, tuple[int, int]] = {}
        self._all: dict[str, list[Numbers]] = {name: [] for name in self._names}
        self._found: dict[int, pd.DataFrame] = {}
        self._verdicts: set[str] = set()

    def add(self, part: Part) -> None:
        """What is the part's own."""
        own = np.flatnonzero(part.own)
        self._count += len(own)
        wanted = own[np.isin(part.number[own], self._numbers)]
        self._keep(part, wanted)
        if self._rows:
            self._add_rows(part, own)
        code = part.instances["verdict"].array.codes
        for name in self._names:
            some = own[(part.instances["name"].take(own) == name).to_numpy()]
            if self._every:
                self._all[name].append(part.number[some])
                self._verdicts |= set(part.instances["verdict"].take(some).unique().tolist())
            elif len(some):
                # The categories are in the order of severity.
                first = some[np.lexsort((part.number[some], code[some]))[0]]
                worst = int(code[first]), int(part.number[first])
                if worst < self._worst.get(name, (len(SEVERITY), 0)):
                    self._found.pop(self._worst.get(name, (0, -1))[1], None)
                    self._worst[name] = worst
                    self._keep(part, np.array([first]))

    def _add_rows(self, part: Part, own: Numbers) -> None:
        """By a schedule, an end, or the return of a run."""
        ended = filled(part.instances["ended_row"].take(own))
        returned = part.durations[part.durations["end_row"].isin(self._rows).to_numpy()]
        at, which = find_rows(ended, returned["row"].to_numpy(np.int64))
        pairs = [(returned["end_row"].to_numpy(np.int64)[which], at)]
        for rows in (ended, filled(part.instances["scheduled_row"].take(own))):
            some = np.flatnonzero(np.isin(rows, self._rows))
            pairs.append((rows[some], some))
        for rows, some in pairs:
            self._of_row |= dict(zip(rows.tolist(), part.number[own[some]].tolist(), strict=True))
            self._keep(part, own[some])

    def _keep(self, part: Part, at: Numbers) -> None:
        for place in at.tolist():
            one = part.instances.iloc[place : place + 1].astype(object)
            self._found[int(part.number[place])] = one

    def end(self) -> list[int]:
        """Their numbers.

        Raises:
            NoSuchInstance
        """
        found = []
        for number in self._numbers:
            if not 0 <= number < self._count:
                raise NoSuchInstance(
                    f"no instance {number}: {self._path} has {self._count:,}, counted from 0",
                    REMEDY,
                )
            found.append(number)
        for row in self._rows:
            if row not in self._of_row:
                raise NoSuchInstance(f"row {row} of {self._path} belongs to no instance", REMEDY)
            found.append(self._of_row[row])
        for name in self._names:
            if self._every:
                found += np.sort(np.concatenate(self._all[name])).tolist()
            elif name in self._worst:
                found.append(self._worst[name][1])
        return list(dict.fromkeys(found))

    @property
    def verdicts(self) -> set[str]:
        """Those of what was found."""
        return self._verdicts | {str(one["verdict"].iloc[0]) for one in self._found.values()}

    def rows_of(self, numbers: Sequence[int]) -> pd.DataFrame:
        """The rows of ``instances`` of some that were asked for by themselves, in this order."""
        return pd.concat([self._found[number] for number in numbers], ignore_index=True)


class Listing:
    """Some columns of some instances, of a recording that may come part by part."""

    def __init__(self, numbers: Sequence[int], columns: Sequence[str]) -> None:
        self._numbers, self._columns = np.array(numbers, np.int64), list(columns)
        self._found: list[pd.DataFrame] = []

    def add(self, part: Part) -> None:
        """What is the part's own."""
        own = np.flatnonzero(part.own & np.isin(part.number, self._numbers))
        some = part.instances[self._columns].take(own).astype(object)
        self._found.append(some.set_axis(part.number[own]))

    def rows(self) -> pd.DataFrame:
        """In the order in which they were asked for, with their numbers as the index."""
        found: pd.DataFrame = pd.concat(self._found).loc[self._numbers]
        return found
