"""What a recording has by the million, as it is drawn: one window of time after the other.

A window ends after so many events, at a moment that nothing else bears: where a long recording was
cut into parts makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import Numbers, code_of, filled, find_rows
from qtrace.analysis.frames import Part
from qtrace.analysis.instances import UNSEEN
from qtrace.analysis.stacks import facts_by_code
from qtrace.analysis.verdicts import SEVERITY
from qtrace.export.groundwork import (
    MARKS,
    Contexts,
    Groundwork,
    address_of,
    counts_as_pending,
    leads_to_its_run,
)
from qtrace.export.nesting import LAST
from qtrace.knowledge import WITHOUT_MAIN_LOOP

Counts = tuple[Numbers, npt.NDArray[np.int32]]
VERDICTS = pd.CategoricalDtype(list(SEVERITY), ordered=True)
# Events of a window.
EVENTS = 1 << 19


@dataclass(frozen=True)
class Window:
    """A stretch of a recording.

    Attributes:
        until_ns: its last moment.
        first_run: how many runs come before it.
        runs: a row per run that begins in it, in time order: ``begin_ns``, ``end_ns``, ``thread``,
            ``name``, ``context``, ``verdict`` (categories; empty where no instance is known),
            ``stack``, ``row``, ``instance``, ``opaque``, ``wait_ns``, ``by`` (the thread that
            scheduled it), ``poll`` (nested: its stack shows the aio_poll() that ran it), ``open``
            (it had not returned) and ``whole`` (it can be drawn inside those around it).
        marks: a row per moment: ``time_ns``, ``kind`` (a position in ``MARKS``), ``thread``,
            ``name``, ``context``, ``stack``, ``row``, and of a schedule the ``instance`` that it
            began, and whether it is sure that this ran (``flows``).
        pending: of each context the moments at which the number of pending bottom halves changed,
            ``time_ns`` and ``count`` (after it).
        lives: a row per instance that ended in it, or, in the last one, not at all, in the order of
            their ends: ``scheduled_ns``, ``ended_ns`` (then behind the recording's end), ``name``
            and ``context`` (categories). What took no time is none. Only where they are asked for.
    """

    until_ns: int
    first_run: int
    runs: pd.DataFrame
    marks: pd.DataFrame
    pending: tuple[Counts, ...]
    lives: pd.DataFrame


def windows_of(
    parts: Iterator[Part], ground: Groundwork, with_lives: bool = False
) -> Iterator[Window]:
    """All of a recording that has been led past a ``Groundwork``."""
    bulk = _Bulk(ground)
    ends = _Ends()
    runs, marks, lives = _Waiting("begin_ns"), _Waiting("time_ns"), _Waiting("ended_ns")
    pending = [_Pending() for _name in bulk.contexts.names]
    first = 0
    for part in parts:
        events = part.events.iloc[part.first_event :]
        times = events["time_ns"].to_numpy(np.int64)
        runs.add(bulk.runs(part))
        marks.add(bulk.marks(part, events))
        lives.add(bulk.lives(part, with_lives))
        until = int(times[-1])
        for own, up, down in zip(pending, *bulk.changes(part, until), strict=True):
            own.add(up, down)
        last = [until] if part.is_last else []
        for end in dict.fromkeys([*ends.of(times), *last]):
            taken = runs.take(end)
            yield Window(
                end,
                first,
                taken,
                marks.take(end),
                tuple(one.take(end) for one in pending),
                # What is pending for good ends behind the recording.
                lives.take(LAST if part.is_last and end == until else end),
            )
            first += len(taken)


class _Ends:
    """Where windows end."""

    def __init__(self) -> None:
        self._count = 0

    def of(self, times: Numbers) -> list[int]:
        """The moments, of the next events; nothing that follows has the time of the last one."""
        last = np.flatnonzero(np.append(times[1:] > times[:-1], True))
        found = []
        at, begin = EVENTS - self._count - 1, -self._count
        while at < len(times):
            end = int(last[last.searchsorted(at)])
            found.append(int(times[end]))
            at, begin = end + EVENTS, end + 1
        self._count = len(times) - begin
        return found


class _Waiting:
    """Rows, in about the order of their times, until their window is over."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._rows: list[pd.DataFrame] = []
        self._reach = np.empty(0, np.int64)

    def add(self, rows: pd.DataFrame) -> None:
        self._keep([*self._rows, rows])

    def _keep(self, rows: list[pd.DataFrame]) -> None:
        self._rows = [stacked(rows)]
        times = self._rows[0][self._column].to_numpy()
        # What lies from each one on is not older than this.
        self._reach = np.minimum.accumulate(times[::-1])[::-1]

    def take(self, until_ns: int) -> pd.DataFrame:
        """Those up to a moment."""
        (rows,) = self._rows
        end = int(self._reach.searchsorted(until_ns, side="right"))
        taken, left = rows.iloc[:end], rows.iloc[end:]
        own = taken[self._column].to_numpy() <= until_ns
        if own.all():
            self._rows, self._reach = [left], self._reach[end:]
        else:
            self._keep([taken[~own], left])
        return taken[own].reset_index(drop=True)


def stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames of one recording, one below the other: the texts of a later one begin with those of
    the earlier ones, so that their codes are the same."""
    some = [frame for frame in frames if len(frame)] or frames[-1:]
    if len(some) == 1:
        return some[0]
    columns: dict[str, Any] = {}
    for name in some[0].columns:
        pieces = [frame[name] for frame in some]
        if isinstance(pieces[-1].dtype, pd.CategoricalDtype):
            codes = np.concatenate([piece.array.codes for piece in pieces])
            columns[name] = pd.Categorical.from_codes(codes, dtype=pieces[-1].dtype)
        else:
            columns[name] = np.concatenate([piece.to_numpy() for piece in pieces])
    return pd.DataFrame(columns, copy=False)


class _Pending:
    """How many are pending in a context: moments at which one more was, or one less."""

    def __init__(self) -> None:
        self._count = 0
        self._changes = np.empty((2, 0), np.int64)

    def add(self, up: Numbers, down: Numbers) -> None:
        more = np.stack([np.concatenate([up, down]), np.repeat([1, -1], [len(up), len(down)])])
        more = more[:, np.argsort(more[0], kind="stable")]
        self._changes = np.concatenate([self._changes, more], axis=1)

    def take(self, until_ns: int) -> Counts:
        """Up to a moment."""
        end = int(self._changes[0].searchsorted(until_ns, side="right"))
        time, step = self._changes[:, :end]
        self._changes = self._changes[:, end:]
        count = self._count + np.cumsum(step)
        last = np.append(time[1:] != time[:-1], True)[: len(time)]
        if len(time):
            self._count = int(count[-1])
        return time[last], count[last].astype(np.int32)


class _Bulk:
    """A part's own runs, marks and changes."""

    def __init__(self, ground: Groundwork) -> None:
        self.contexts: Contexts = ground.contexts()
        self._later, self._unfinished = ground.later(self.contexts), ground.unfinished
        self._crossing = ground.nesting.crossing()
        self._place = {one.tid: place for place, one in enumerate(ground.threads())}
        self._narrow = ground.last_row <= np.iinfo(np.int32).max
        self._before, self._end_ns = 0, ground.end_ns

    def runs(self, part: Part) -> pd.DataFrame:
        """See ``Window``."""
        instances = part.instances
        runs = part.runs.take(np.flatnonzero(part.own_runs))
        row = runs["row"].to_numpy(np.int64)
        begin = runs["time_ns"].to_numpy(np.int64)
        end = filled(runs["end_ns"]).copy()
        at, which = find_rows(row, self._unfinished.row)
        is_open = np.zeros(len(runs), np.bool_)
        is_open[at] = True
        lasted = self._unfinished.lasted[which]
        end[at] = np.where(lasted > 0, begin[at] + lasted, -1)
        whole = end > begin
        whole[at[self._unfinished.inside[which]]] = False
        whole[find_rows(row, self._crossing)[0]] = False
        instance = filled(runs["instance"])
        # The categories are those of SEVERITY; the last place stands for none.
        verdict = np.append(instances["verdict"].array.codes, np.int8(-1))[instance]
        scheduled = filled(runs["scheduled_ns"])
        number = np.append(part.number, -1)[instance]
        by = np.append(filled(instances["scheduled_by_tid"]), -1)[instance]
        return pd.DataFrame(
            {
                "begin_ns": begin,
                "end_ns": end,
                "thread": self._places(runs["tid"].to_numpy(np.int64)),
                "name": runs["name"].array,
                "context": self.contexts.codes(runs["context"], address_of(instances, instance)),
                "verdict": pd.Categorical.from_codes(verdict, dtype=VERDICTS),
                "stack": runs["stack"].array,
                "row": self._small(row),
                "instance": self._small(number),
                "opaque": runs["opaque"].to_numpy(),
                "wait_ns": np.where(scheduled < 0, -1, np.maximum(begin - scheduled, 0)),
                "by": self._places(by),
                "poll": _polled(part, runs),
                "open": is_open,
                "whole": whole,
            },
            copy=False,
        )

    def marks(self, part: Part, events: pd.DataFrame) -> pd.DataFrame:
        """See ``Window``."""
        kind = code_of(events["event"], MARKS)
        own = np.flatnonzero(kind >= 0)
        # Column by column: of ten million events each one is large.
        row = events["row"].to_numpy(np.int64)[own]
        time = events["time_ns"].to_numpy(np.int64)[own]
        instance = np.full(len(own), -1, np.int64)
        flows = np.zeros(len(own), np.bool_)
        begun = np.flatnonzero(part.own & part.instances["scheduled_row"].notna().to_numpy())
        some = part.instances.take(begun)
        at, which = find_rows(row, filled(some["scheduled_row"]))
        instance[at], flows[at] = part.number[begun[which]], leads_to_its_run(some)[which]
        # One that another thread ran before it was noted had been scheduled by then.
        time[at] = np.minimum(time[at], filled(some["scheduled_ns"])[which])
        at, which = find_rows(row, self._later.row)
        instance[at], flows[at] = self._later.number[which], self._later.flows[which]
        return pd.DataFrame(
            {
                "time_ns": time,
                "kind": kind[own],
                "thread": self._places(events["tid"].to_numpy(np.int64)[own]),
                "name": events["name"].array.take(own),
                "context": self.contexts.codes(
                    events["context"].take(own), events["ctx"].to_numpy()[own]
                ),
                "stack": events["stack"].array.take(own),
                "row": self._small(row),
                "instance": self._small(instance),
                "flows": flows,
            },
            copy=False,
        )

    def changes(self, part: Part, until_ns: int) -> tuple[list[Numbers], list[Numbers]]:
        """Of each context when one more was pending, and one less, in the part's own time."""
        instances = part.instances[part.own]
        instances = instances[counts_as_pending(instances)]
        where = self.contexts.codes(instances["context"], instances["ctx"].to_numpy())
        begin, end = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
        still = end < 0
        new = begin > self._before
        later = self._later
        more = later.counted & (later.scheduled_ns > self._before)
        more &= later.scheduled_ns <= until_ns
        self._before = until_ns
        ups, downs = [], []
        for code in range(len(self.contexts.names)):
            own = where == code
            others = later.scheduled_ns[more & (later.context == code)]
            ups.append(np.concatenate([begin[own & new], others]))
            downs.append(np.maximum(end, begin)[own & ~still])
        return ups, downs

    def lives(self, part: Part, wanted: bool) -> pd.DataFrame:
        """See ``Window``."""
        instances = part.instances if wanted else part.instances.iloc[:0]
        known = part.own[: len(instances)] & (code_of(instances["end"], (UNSEEN,)) < 0)
        begin, end = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
        end = np.where(code_of(instances["end"], ("",)) == 0, self._end_ns + 1, end)
        own = np.flatnonzero(known & (begin >= 0) & (end > begin))
        own = own[np.argsort(end[own], kind="stable")]
        return pd.DataFrame(
            {
                "scheduled_ns": begin[own],
                "ended_ns": end[own],
                "name": instances["name"].array.take(own),
                "context": instances["context"].array.take(own),
            },
            copy=False,
        )

    def _places(self, tids: Numbers) -> npt.NDArray[np.int32]:
        """The position of each row's thread, -1 for none."""
        number, known = pd.factorize(tids)
        places = [self._place.get(tid, -1) for tid in known.tolist()]
        return np.array(places, np.int32)[number]

    def _small(self, numbers: Numbers) -> npt.NDArray[np.signedinteger[Any]]:
        """Numbers of rows, or of instances, in half the room where they fit."""
        return numbers.astype(np.int32) if self._narrow else numbers


def _polled(part: Part, runs: pd.DataFrame) -> npt.NDArray[np.bool_]:
    if part.file.header["target"].get("program") in WITHOUT_MAIN_LOOP:
        return np.zeros(len(runs), np.bool_)
    facts = facts_by_code(runs["stack"])
    polled = (facts["dispatcher"] == "poll").to_numpy()[runs["stack"].array.codes]
    # An IOThread's loop, and qemu-img's, is a poll itself.
    return np.asarray(polled & (runs["role"] != "iothread").to_numpy())
