"""A long recording part by part: the same instances and runs as in one piece, in bounded memory.

A part ends at a moment; what is open then is carried into the next one: schedules that are pending,
runs that have not returned, and the runs that these were scheduled in. A part is judged when so
much of what follows is known that no crossed note (analysis/event_order.py) can reach back across
its end. How long a run took that goes on for longer than that, the first reading of the file tells
(analysis/survey.py).

What is from before a part stands at the beginning of its frames; ``own`` are the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis import event_order
from qtrace.analysis.arrays import Numbers, code_of, filled
from qtrace.analysis.brackets import Mask, Positions
from qtrace.analysis.frames import Frames, Part, Stretch
from qtrace.analysis.instances import Pairs, Past, assemble, ends_at, groups_at, pairs_of
from qtrace.analysis.losses import joined
from qtrace.analysis.runs import NEVER, last_moments, later, latest_ends, runs_of, watched_until
from qtrace.analysis.survey import Survey
from qtrace.analysis.timing import returns_of, undisturbed
from qtrace.analysis.verdicts import SILENT, classify
from qtrace.trace.edges import may_be_beyond
from qtrace.trace.outline import outline, parts_of
from qtrace.trace.reader import Arrays, Columns, TraceFile
from qtrace.trace.stream import Progress

# So many rows are judged together.
ROWS = 2_000_000


@dataclass
class _Carried:
    """What the next part has to know; positions are those in ``rows``.

    Attributes:
        rows: events, in time order.
        pending, number, swallowed: schedules of instances that are pending, their numbers, and how
            many schedules went into each.
        begin, end, past: instances that ended, of the runs that are carried, and their numbers.
        unreturned: runs whose return is to come.
        durations: of the other runs, see ``run_durations``.
        ahead: the events behind the part's end.
    """

    rows: Arrays
    pending: Positions
    number: Numbers
    swallowed: npt.NDArray[np.int32]
    begin: Positions
    end: Positions
    past: Numbers
    unreturned: Positions
    durations: pd.DataFrame
    ahead: Arrays


@dataclass
class _Known:
    """What is known so far of what came before."""

    past: Past
    numbered: int = 0
    scheduled: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    latest: tuple[int, int] = (0, 0)
    idle: dict[str, int] = field(default_factory=dict)


class Sliced:
    """A recording that is read part by part.

    Attributes:
        file: the recording without the rows of bottom halves.
    """

    def __init__(self, file: TraceFile, survey: Survey, rows: int, progress: Progress) -> None:
        self.file, self._survey, self._rows, self._progress = file, survey, rows, progress

    @classmethod
    def of(
        cls, path: Path, rows: int = ROWS, progress: Progress = lambda _done, _all: None
    ) -> Sliced | None:
        """Read it for the first time. None where it can only be read in one piece."""
        survey = Survey(_ahead_ns())
        file = outline(path, survey.see, progress)
        if file is None:
            return None
        if file.read is not None and may_be_beyond(file.read.latest_ns, file.detach):
            # Of an early qtrace: it has seen what is no part of the recording.
            survey = Survey(_ahead_ns())
            for columns, arrays in parts_of(file, progress):
                survey.see(columns.frame(arrays))
        return cls(file, survey, rows, progress)

    @cached_property
    def _losses(self) -> pd.DataFrame:
        return joined(self.file.losses, self.file.step_losses)

    @cached_property
    def _long(self) -> pd.DataFrame:
        return self._survey.long_runs(self._losses)

    @property
    def names(self) -> list[str]:
        """The bottom halves, in the order in which they were seen."""
        return self._survey.names()

    def __iter__(self) -> Iterator[Stretch]:
        kinds = self.file.frame["event"]
        lives = self._survey.lives(self.file.frame[(kinds == "blocked").to_numpy()])
        known = _Known(Past(lives, np.empty(0, np.bool_), {}, _no_lives()))
        carried: _Carried | None = None
        waiting: list[Arrays] = []
        columns, count = Columns(), 0
        for table_columns, arrays in parts_of(self.file, self._progress):
            columns = table_columns
            waiting.append(arrays)
            count += len(arrays["row"])
            if count < self._rows:
                continue
            part, carried = self._judge(columns, waiting, carried, known, is_last=False)
            waiting = []
            if part is None:
                # Too little lies ahead: what was to be judged waits with what comes next.
                continue
            count = 0
            yield part
        part, _carried = self._judge(columns, waiting, carried, known, is_last=True)
        assert part is not None
        yield part

    def _judge(
        self,
        columns: Columns,
        waiting: list[Arrays],
        carried: _Carried | None,
        known: _Known,
        is_last: bool,
    ) -> tuple[Stretch | None, _Carried | None]:
        before = [carried.rows, carried.ahead] if carried is not None else []
        arrays = _together([*before, *waiting])
        first = 0 if carried is None else len(carried.rows["row"])
        frame = columns.frame(arrays)
        paired = np.ones(first, np.bool_)
        if carried is not None:
            paired[carried.pending] = False
        known.past.paired = paired
        pairs = pairs_of(frame, self.file.losses, known.past)
        cut = len(frame) - 1 if is_last else _cut(arrays["time_ns"], pairs.spans)
        if cut < first:
            if carried is None:
                carried = _nothing(arrays)
            carried.ahead = {column: values[first:] for column, values in arrays.items()}
            return None, carried
        judged = _Judged(self, frame, arrays, pairs, carried, known, first, cut, is_last)
        part = judged.part()
        if not is_last:
            carried = judged.carried(part)
            known.past.groups = groups_at(frame, pairs, cut, known.past)
            known.past.ends = ends_at(frame, cut, self._survey.looked_for, known.past)
        return part, carried

    @property
    def long(self) -> pd.DataFrame:
        """The runs whose end a part may not show, see ``run_durations``."""
        return self._long

    @property
    def all_losses(self) -> pd.DataFrame:
        """As ``Frames.all_losses``."""
        return self._losses

    @property
    def returned(self) -> Numbers:
        """The callbacks whose returns were recorded."""
        return np.array(sorted(self._survey.returned), np.uint64)


class _Judged:
    """One part: its frames, and what it hands on."""

    def __init__(
        self,
        whole: Sliced,
        frame: pd.DataFrame,
        arrays: Arrays,
        pairs: Pairs,
        carried: _Carried | None,
        known: _Known,
        first: int,
        cut: int,
        is_last: bool,
    ) -> None:
        self.whole, self.arrays, self.pairs, self.known = whole, arrays, pairs, known
        self.first, self.cut, self.is_last = first, cut, is_last
        self.before = carried if carried is not None else _nothing(arrays)
        self.events = frame.iloc[: cut + 1]
        alone = np.setdiff1d(np.arange(first), self.before.unreturned)
        self.begun, self.returned = returns_of(frame, alone)
        self.swallowed = np.zeros(len(frame), np.int32)
        self.swallowed[self.before.pending] = self.before.swallowed
        inside = pairs.again[0] <= cut
        again = pairs.again[1][inside]
        into, count = np.unique(again, return_counts=True)
        self.swallowed[into] += count.astype(np.int32)
        self.number = self._numbers()

    def _numbers(self) -> Numbers:
        """Of each pair; -1 where it is first seen behind the end."""
        first = self.pairs.first
        found = np.full(len(first), -1, np.int64)
        old = first < self.first
        at = np.searchsorted(self.before.pending, first[old])
        found[old] = self.before.number[at]
        new = np.flatnonzero(~old & (first <= self.cut))
        found[new] = self.known.numbered + np.arange(len(new))
        self.known.numbered += len(new)
        return found

    @cached_property
    def pending(self) -> Mask:
        """Which pairs are open at the end."""
        over = self.pairs.over
        begun = (self.pairs.begin >= 0) & (self.pairs.begin <= self.cut)
        return begun & ((over < 0) | (over > self.cut))

    def part(self) -> Stretch:
        pairs, before = self.pairs, self.before
        over = (pairs.over >= 0) & (pairs.over <= self.cut)
        own = over | self.pending if self.is_last else over
        begin = np.concatenate([before.begin, pairs.begin[own]])
        end = np.concatenate([before.end, pairs.end[own]])
        number = np.concatenate([before.past, self.number[own]])
        unseen = np.concatenate([np.zeros(len(before.begin), np.bool_), pairs.unseen[own]])
        order = np.argsort(number, kind="stable")
        mine = np.arange(len(number)) >= len(before.begin)
        self.begin, self.end = begin[order], end[order]
        instances = assemble(self.events, self.begin, self.end, unseen[order], self.swallowed)
        file = self.whole.file
        self._count(instances[mine[order]])
        known = self.known
        silent = [n for n, of in known.scheduled.items() if of >= SILENT and not known.ran[n]]
        instances = classify(instances, file, silent)
        durations = self._durations()
        runs = runs_of(self.events, durations, instances, self.whole.all_losses)
        self.run_at = np.flatnonzero(code_of(self.events["event"], ("run",)) == 0)
        known.latest = later(known.latest, last_moments(self.events))
        until = watched_until(file, known.latest) if self.is_last else 0
        return Stretch(
            file=file,
            events=self.events,
            instances=instances,
            runs=runs,
            durations=durations,
            latest_ends=latest_ends(runs, self.events),
            own=mine[order],
            own_runs=self.run_at >= self.first,
            first_event=self.first,
            number=number[order],
            is_last=self.is_last,
            watched_until=until,
            idle=known.idle,
        )

    def _count(self, own: pd.DataFrame) -> None:
        for counter, there in (
            (self.known.scheduled, own["scheduled_ns"].notna()),
            (self.known.ran, own["end"] == "run"),
        ):
            found = own.loc[there.to_numpy(), "name"].value_counts()
            counter.update({str(name): int(n) for name, n in found.items() if n})

    def _durations(self) -> pd.DataFrame:
        times, rows = self.arrays["time_ns"], self.arrays["row"]
        losses = self.whole.all_losses
        mine = (self.begun >= 0) & (self.begun <= self.cut)
        known = mine & (self.returned >= 0)
        begin, end = self.begun[known], self.returned[known]
        shown = undisturbed(rows[begin], times[begin], times[end], rows[end], losses)
        open_still = rows[self.begun[mine & ~known]]
        long = self.whole.long
        long = long[long["row"].isin(open_still).to_numpy()]
        return pd.concat([self.before.durations, shown, long], ignore_index=True)

    def carried(self, part: Stretch) -> _Carried:
        pairs = self.pairs
        self.known.idle = self._idle(part)
        begin = pairs.begin[self.pending]
        since = self.arrays["time_ns"][begin]
        contexts = part.events["context"].iloc[begin].astype(object)
        idle = np.array([self.known.idle.get(name, 0) for name in contexts], np.int64)
        part.since = np.unique(np.concatenate([since, np.maximum(since, idle)]))
        kept = self._runs_kept(part)
        at = self.run_at[kept]
        instance = filled(part.runs["instance"])[kept]
        instance = instance[instance >= 0]
        open_begin = pairs.begin[self.pending]
        order = np.argsort(open_begin)
        open_begin = open_begin[order]
        mine = (self.begun >= 0) & (self.begun <= self.cut)
        back = (self.returned < 0) | (self.returned > self.cut)
        unreturned = self.begun[mine & back]
        callbacks = self.arrays["callback"][unreturned]
        unreturned = unreturned[np.isin(callbacks, self.whole.returned)]
        begin, end = self.begin[instance], self.end[instance]
        rows = np.unique(np.concatenate([at, begin[begin >= 0], end, open_begin, unreturned]))
        place = np.full(self.cut + 2, -1)
        place[rows] = np.arange(len(rows))
        row = self.arrays["row"]
        told = part.durations["row"].isin(row[at]) & ~part.durations["row"].isin(row[unreturned])
        return _Carried(
            rows={column: values[rows] for column, values in self.arrays.items()},
            pending=place[open_begin],
            number=self.number[self.pending][order],
            swallowed=self.swallowed[open_begin],
            begin=np.where(begin >= 0, place[begin], -1),
            end=place[end],
            past=part.number[instance],
            unreturned=np.sort(place[unreturned]),
            durations=part.durations[told.to_numpy()],
            ahead={column: values[self.cut + 1 :] for column, values in self.arrays.items()},
        )

    def _idle(self, part: Stretch) -> dict[str, int]:
        """When the last run of each context had ended, of those that are known to have."""
        ended = part.latest_ends != NEVER
        contexts = part.runs["context"][ended].astype(object)
        latest = pd.Series(part.latest_ends[ended]).groupby(contexts.to_numpy()).max()
        found = dict(self.known.idle)
        for name, time_ns in latest.items():
            found[str(name)] = max(found.get(str(name), 0), int(time_ns))
        return found

    def _runs_kept(self, part: Stretch) -> Positions:
        """The runs that what is open may still ask for."""
        runs, now = part.runs, int(self.arrays["time_ns"][self.cut])
        ended = filled(runs["end_ns"])
        kept = (ended > now) | ((ended < 0) & (part.latest_ends > now))
        begin = self.pairs.begin[self.pending]
        since = self.arrays["time_ns"][begin]
        kept |= _may_be_in_the_way(runs, ended, part.since, now)
        # What each thread began last tells in which run it is.
        kept[_around(runs, *_now(runs, now))] = True
        # In which run each was scheduled, and in which that one was.
        kept[_around(runs, self.arrays["tid"][begin], since)] = True
        outer = filled(runs["outer"])
        kept[outer[kept & (outer >= 0)]] = True
        instance = filled(runs["instance"])[np.flatnonzero(kept)]
        own = part.instances.take(instance[instance >= 0])
        kept[_around(runs, filled(own["scheduled_by_tid"]), filled(own["scheduled_ns"]))] = True
        kept[outer[kept & (outer >= 0)]] = True
        return np.flatnonzero(kept)


def _now(runs: pd.DataFrame, now: int) -> tuple[Numbers, Numbers]:
    """All threads, and this moment for each."""
    threads = np.unique(runs["tid"].to_numpy(np.int64))
    return threads, np.full(len(threads), now)


def _around(runs: pd.DataFrame, tid: Numbers, time: Numbers) -> Positions:
    """The runs that tell in which one threads were at these moments: the last that each began
    (``runs_of`` looks for the outermost one around it, too)."""
    began, runner = runs["time_ns"].to_numpy(np.int64), runs["tid"].to_numpy(np.int64)
    found = []
    for thread in np.unique(tid[tid > 0]):
        own = np.flatnonzero(runner == thread)
        last = began[own].searchsorted(time[tid == thread], side="right") - 1
        found.append(own[last[last >= 0]])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _may_be_in_the_way(runs: pd.DataFrame, ended: Numbers, since: Numbers, now: int) -> Mask:
    """The runs that took half of the time, or more, since something that is pending was scheduled,
    given in order (``in_the_way``)."""
    if not len(since):
        return np.zeros(len(runs), np.bool_)
    began = runs["time_ns"].to_numpy(np.int64)
    last = since.searchsorted(ended, side="left") - 1
    waited = now - since[np.maximum(last, 0)]
    return np.asarray((last >= 0) & ((ended - began) * 2 >= waited))


def _ahead_ns() -> int:
    """So much of what follows has to be known: a crossed note, and what is around it."""
    return 2 * event_order.LATE_NS


def _cut(times: Numbers, spans: list[tuple[int, int]]) -> int:
    """The last position of the part; nothing was put in order across it. -1 for none."""
    later = times[1:] > times[:-1]
    cut = int(times.searchsorted(times[-1] - _ahead_ns(), side="right")) - 1
    moved = True
    while moved and cut >= 0:
        while cut >= 0 and not later[cut : cut + 1].all():
            cut -= 1
        across = [first for first, last in spans if first <= cut < last]
        moved = bool(across)
        cut = min(across) - 1 if across else cut
    return cut


def _together(parts: list[Arrays]) -> Arrays:
    return {column: np.concatenate([one[column] for one in parts]) for column in parts[0]}


def _nothing(arrays: Arrays) -> _Carried:
    none = np.empty(0, np.int64)
    durations = pd.DataFrame({"row": none, "duration_ns": none, "end_row": none})
    rows: dict[str, Any] = {column: values[:0] for column, values in arrays.items()}
    return _Carried(
        rows, none, none, np.empty(0, np.int32), none, none, none, none, durations, rows
    )


def _no_lives() -> pd.DataFrame:
    kinds = {"bh": np.uint64, "callback": np.uint64, "opaque": np.uint64, "at": np.int64,
             "schedule": np.bool_}  # fmt: skip
    return pd.DataFrame({column: np.empty(0, kind) for column, kind in kinds.items()})


class Outlined(Frames):
    """A recording that is only judged part by part: the frames of what comes seldom are there, of
    bottom halves there are ``parts``. It is read again for each time through."""

    def __init__(self, sliced: Sliced) -> None:
        super().__init__(sliced.file)
        self._sliced = sliced

    def parts(self) -> Iterator[Part]:
        """See ``Frames.parts``. After the last one ``watched_until`` and ``proofs`` are known."""
        for part in self._sliced:
            if part.is_last:
                self.watched_until = part.watched_until
                self.proofs = {int(part.number[at]): proof for at, proof in part.proofs.items()}
            yield part

    @cached_property
    def watched_until(self) -> int:
        """See ``Frames``: the recording is read for it."""
        for _part in self.parts():
            pass
        found: int = self.__dict__["watched_until"]
        return found

    @property
    def names(self) -> list[str]:
        """See ``Frames``."""
        return self._sliced.names

    def evidence(self, rows: Iterable[int]) -> pd.DataFrame:
        """See ``Frames``: the file is read for them."""
        wanted = np.array(sorted(rows), np.int64)
        found: list[Arrays] = []
        columns = Columns()
        for numbers, arrays in parts_of(self.file):
            own = np.isin(arrays["row"], wanted)
            found.append({column: values[own] for column, values in arrays.items()})
            columns = numbers
        return columns.frame(_together(found))

    @property
    def instances(self) -> pd.DataFrame:
        """There are too many."""
        raise TypeError("a recording that is read part by part has its instances in parts()")

    runs = durations = instances
