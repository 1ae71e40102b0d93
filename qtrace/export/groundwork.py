"""What has to be known of a recording before its first run can be drawn, gathered part by part.

A recording is read a second time for what comes by the million (export/windows.py): what only its
end tells is known by then. What is gathered does not depend on where the parts were cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers, code_of, filled
from qtrace.analysis.brackets import Mask
from qtrace.analysis.frames import Part
from qtrace.analysis.instances import UNSEEN
from qtrace.analysis.threads import Names
from qtrace.analysis.verdicts import LOST
from qtrace.export.nesting import LAST, Nesting
from qtrace.roles import ORDER

# Moments of a thread that are drawn as such, in the order of their codes.
MARKS = ("schedule", "co_schedule", "cancel", "delete", "call")
# So many of the longest runs, and of those that had waited longest, are known by their rows.
LONGEST = 200
# Of more runs than so many only every second, fourth and so on is kept to find a place by.
PLACES = 1 << 20


@dataclass(frozen=True, slots=True)
class Thread:
    """A lane: a thread that ran, scheduled or called something, or was seen to wait."""

    tid: int
    name: str
    role: str


class Contexts:
    """The names of AioContexts; one without a name goes by its address."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._known = {name: place for place, name in enumerate(names)}

    def codes(self, context: pd.Series, ctx: npt.NDArray[np.uint64]) -> npt.NDArray[np.int16]:
        """The position of each row's context."""
        local, names = named(context, ctx)
        table = np.array([*(self._known[name] for name in names), -1], np.int16)
        found: npt.NDArray[np.int16] = table[local]
        return found


def named(
    context: pd.Series, ctx: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The context of each row as a number, and their names."""
    codes = context.array.codes
    names: dict[str, int] = {}
    table = np.full(len(context.cat.categories) + 1, -1, np.int32)
    for code in present(codes):
        if code >= 0 and (name := str(context.cat.categories[code])):
            table[code] = names.setdefault(name, len(names))
    found = table[codes]
    unnamed = np.flatnonzero(found < 0)
    number, addresses = pd.factorize(ctx[unnamed])
    texts = [f"{one:#x}" if one else "unknown context" for one in addresses.tolist()]
    own = [names.setdefault(text, len(names)) for text in texts]
    if own:
        found[unnamed] = np.array(own, np.int32)[number]
    return found, list(names)


def present(codes: npt.NDArray[np.signedinteger]) -> list[int]:
    """The codes that occur, in order; -1 stands for no text."""
    found = np.zeros(int(codes.max(initial=-1)) + 2, np.bool_)
    found[codes] = True
    ordered = np.flatnonzero(found[:-1]).tolist()
    return [-1, *ordered] if found[-1] else ordered


def leads_to_its_run(instances: pd.DataFrame) -> Mask:
    """Which instances ran and are sure to be those that were scheduled."""
    sure = code_of(instances["reason"], (LOST,)) < 0
    ran = code_of(instances["end"], ("run",)) == 0
    return np.asarray(sure & ran & instances["scheduled_ns"].notna().to_numpy())


def counts_as_pending(instances: pd.DataFrame) -> Mask:
    """Those of which the schedule was seen, and the end too, or that they were pending when the
    recording ended."""
    still = code_of(instances["end"], ("",)) == 0
    known = code_of(instances["end"], (UNSEEN,)) < 0
    known &= ~(still & (code_of(instances["reason"], (LOST,)) == 0))
    return np.asarray(known & instances["scheduled_ns"].notna().to_numpy())


def address_of(instances: pd.DataFrame, instance: Numbers) -> npt.NDArray[np.uint64]:
    """The address of the context of some instances, 0 for -1."""
    found: npt.NDArray[np.uint64] = np.append(instances["ctx"].to_numpy(), np.uint64(0))[instance]
    return found


class Longest:
    """The rows of the highest values; of equal ones those that come first in the file."""

    def __init__(self) -> None:
        self._values = self._rows = np.empty(0, np.int64)

    def add(self, values: Numbers, rows: Numbers) -> None:
        """Those below 0 are none."""
        known = values >= 0
        if len(values) > LONGEST:
            known &= values >= np.partition(values, -LONGEST)[-LONGEST]
        values = np.concatenate([self._values, values[known]])
        rows = np.concatenate([self._rows, rows[known]])
        order = np.lexsort((rows, -values))[:LONGEST]
        self._values, self._rows = values[order], rows[order]

    def first(self, count: int) -> Numbers:
        """Of so many, the highest first."""
        return self._rows[:count]


class Places:
    """Which run of the recording is the first that begins at a moment, or later."""

    def __init__(self) -> None:
        self.count, self.step = 0, 1
        self._kept: list[Numbers] = []

    def add(self, begins: Numbers) -> None:
        """The next ones, in time order."""
        self._kept.append(begins[-self.count % self.step :: self.step])
        self.count += len(begins)
        while self.count > PLACES * self.step:
            self._kept = [np.concatenate(self._kept)[::2]]
            self.step *= 2

    def of(self, times_ns: Numbers) -> Numbers:
        """Right to ``step``."""
        kept = np.concatenate(self._kept) if self._kept else np.empty(0, np.int64)
        found: Numbers = kept.searchsorted(times_ns) * self.step
        return found


@dataclass(frozen=True)
class Later:
    """Instances that end in another part than they begin in, in the order of the rows of their
    schedules: what only their end tells.

    Attributes:
        flows: see ``leads_to_its_run``; counted: see ``counts_as_pending``.
        context: the position of its name.
    """

    row: Numbers
    number: Numbers
    scheduled_ns: Numbers
    flows: Mask
    counted: Mask
    context: npt.NDArray[np.int16]


@dataclass(frozen=True)
class Unfinished:
    """Runs that had not returned, in the order of their rows: for how long at least (0: that is not
    known), and whether a run ended around them all the same."""

    row: Numbers
    lasted: Numbers
    inside: Mask


class Groundwork:
    """It is led past a recording.

    Attributes:
        events: how many there are. begin_ns, end_ns: when the first and the last of them were.
        last_row: the highest number of a row.
        places: of all runs.
        took, waited: the longest runs, and those that had waited longest.
        nesting: of all runs with an end.
    """

    def __init__(self) -> None:
        self.events = self.begin_ns = self.end_ns = self.last_row = 0
        self.places, self.nesting = Places(), Nesting()
        self.took, self.waited = Longest(), Longest()
        self._names = Names()
        self._contexts: dict[str, tuple[int, int, int]] = {}
        self._later: list[pd.DataFrame] = []
        none = np.empty(0, np.int64)
        self.unfinished = Unfinished(none, none, none.astype(np.bool_))

    def add(self, part: Part) -> None:
        """What is the part's own."""
        before = self.end_ns
        events = part.events.iloc[part.first_event :]
        self._see_events(events)
        own = np.flatnonzero(part.own)
        instances, number = part.instances.take(own), part.number[own]
        self._names.add(events, instances, number)
        found = named(instances["context"], instances["ctx"].to_numpy())
        self._see_contexts(2, *found, number, np.zeros(len(number), np.int64))
        self._see_later(instances, number, np.array(found[1], object)[found[0]], before)
        self._see_runs(part)

    def _see_events(self, events: pd.DataFrame) -> None:
        times = events["time_ns"].to_numpy(np.int64)
        if not self.events:
            self.begin_ns = int(times[0])
        self.events += len(times)
        self.end_ns = int(times[-1])
        self.last_row = max(self.last_row, int(events["row"].max()))
        marks = code_of(events["event"], MARKS) >= 0
        context, ctx, row = (events[name][marks] for name in ("context", "ctx", "row"))
        self._see_contexts(1, *named(context, ctx.to_numpy()), times[marks], row.to_numpy(np.int64))

    def _see_runs(self, part: Part) -> None:
        own = np.flatnonzero(part.own_runs)
        runs = part.runs.take(own)
        begin, end, row, scheduled, instance, tid = (
            filled(runs[name])
            for name in ("time_ns", "end_ns", "row", "scheduled_ns", "instance", "tid")
        )
        self.places.add(begin)
        self.took.add(np.where(end < 0, -1, end - begin), row)
        self.waited.add(np.where(scheduled < 0, -1, np.maximum(begin - scheduled, 0)), row)
        ctx = address_of(part.instances, instance)
        self._see_contexts(0, *named(runs["context"], ctx), begin, row)
        self.nesting.add(tid, begin, end, row, LAST if part.is_last else self.end_ns)
        if part.is_last:
            still = part.unfinished
            at, lasted = still.index.to_numpy(np.int64), still.to_numpy(np.int64)
            row = part.runs["row"].to_numpy(np.int64)[at]
            self.took.add(np.where(lasted > 0, lasted, -1), row)
            inside = filled(part.runs["outer"])[at] >= 0
            order = np.argsort(row)
            self.unfinished = Unfinished(row[order], lasted[order], inside[order])

    def _see_contexts(
        self, rank: int, codes: npt.NDArray[np.int32], names: list[str], first: Numbers,
        second: Numbers,
    ) -> None:  # fmt: skip
        """Where each occurs first."""
        at = np.zeros(len(names), np.int64)
        # Of several the last one written stays.
        at[codes[::-1]] = np.arange(len(codes))[::-1]
        for name, place in zip(names, at.tolist(), strict=True):
            where = (rank, int(first[place]), int(second[place]))
            self._contexts[name] = min(self._contexts.get(name, where), where)

    def _see_later(
        self, instances: pd.DataFrame, number: Numbers, context: npt.NDArray[np.object_], until: int
    ) -> None:
        """What began in an earlier part: up to ``until``."""
        scheduled = filled(instances["scheduled_ns"])
        own = np.flatnonzero((scheduled >= 0) & (scheduled <= until))
        some = instances.take(own)
        self._later.append(
            pd.DataFrame(
                {
                    "row": filled(some["scheduled_row"]),
                    "number": number[own],
                    "scheduled_ns": scheduled[own],
                    "flows": leads_to_its_run(some),
                    "counted": counts_as_pending(some),
                    "context": context[own],
                }
            )
        )

    def threads(self) -> tuple[Thread, ...]:
        """In the order in which people are shown them."""
        names = self._names.found()
        found = [Thread(tid, name, role) for tid, (name, role) in names.items()]
        return tuple(sorted(found, key=lambda one: (ORDER.index(one.role), one.tid)))

    def contexts(self) -> Contexts:
        """In the order in which they were seen."""
        return Contexts(sorted(self._contexts, key=lambda name: self._contexts[name]))

    def later(self, contexts: Contexts) -> Later:
        """The instances that lie in several parts."""
        found = pd.concat(self._later, ignore_index=True).sort_values("row")
        place = {name: number for number, name in enumerate(contexts.names)}
        codes = np.array([place[name] for name in found["context"]], np.int16)
        row, number, scheduled = (
            found[name].to_numpy(np.int64) for name in ("row", "number", "scheduled_ns")
        )
        flows, counted = (found[name].to_numpy(np.bool_) for name in ("flows", "counted"))
        return Later(row, number, scheduled, flows, counted, codes)
