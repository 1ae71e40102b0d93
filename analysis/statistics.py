"""What every bottom half of an `--all` recording did: how often, how late, how long, and who."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import code_of, filled, find_rows
from qtrace.analysis.brackets import Positions, numbered, stable_order, starts_of
from qtrace.analysis.distribution import Times
from qtrace.analysis.frames import Part
from qtrace.analysis.report_types import LongRun, Scheduler, Statistics
from qtrace.analysis.stacks import ENDS, functions
from qtrace.analysis.verdicts import LOST

# The longest runs, and the commonest schedulers, of each bottom half.
LONGEST, SCHEDULERS = 3, 5
LAST = int(np.iinfo(np.int64).max)


class Summarizing:
    """Statistics of one recording, which may come part by part."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}
        self._start_ns: int | None = None

    def add(self, part: Part) -> None:
        """What is the part's own."""
        if self._start_ns is None:
            self._start_ns = int(part.events["time_ns"].iloc[0])
        work = _Work(part)
        instances = part.instances
        own = np.flatnonzero(part.own)
        codes = (instances[column].array.codes[own] for column in ("name", "context"))
        group = numbered(*codes)
        order = stable_order(group)
        own, starts = own[order], np.flatnonzero(starts_of(group[order]))[1:]
        # Of ten million events each is large.
        del group, order
        for rows in np.split(own, starts):
            if len(rows):
                first = instances.iloc[rows[0]]
                key = str(first["name"]), str(first["context"])
                self._groups.setdefault(key, _Group()).add(work, rows)

    def end(self) -> list[Statistics]:
        """The busiest bottom half first.

        Returns:
            For each bottom half and context: ``name``, ``context``, ``scheduled``, ``ran``,
            ``cancelled``, ``coalesced``; ``wait`` (schedule to run) and ``duration``, each p50, p99
            and max in nanoseconds or None (``distribution.EXACT`` tells how exact); ``roles`` (runs
            by thread role); ``scheduled_by`` (caller, the function that scheduled it, empty when
            unknown; role, thread; threads, how many of that name and role did; tid, that of the
            first; count); ``longest`` (duration_ns, time_ns, since_start_ns, row, role, thread,
            tid, stack). An instance during whose life events were lost counts, but has no wait.
        """
        ordered = sorted(self._groups.items(), key=lambda one: one[1].first)
        found = [own.statistics(*key, self._start_ns or 0) for key, own in ordered]
        return sorted(found, key=lambda one: -(one["ran"] + one["scheduled"]))


class _Work:
    """The columns of a part that are counted, as arrays."""

    def __init__(self, part: Part) -> None:
        instances, durations = part.instances, part.durations
        self.instances, self.number = instances, part.number
        self.ran = code_of(instances["end"], ("run",)) == 0
        self.took = np.full(len(instances), -1, np.int64)
        ended = filled(instances["ended_row"])
        own = np.flatnonzero(self.ran)
        at, found = find_rows(ended[own], durations["row"].to_numpy(np.int64))
        self.took[own[at]] = durations["duration_ns"].to_numpy(np.int64)[found]
        callers = [_caller(str(text)) for text in instances["scheduled_stack"].cat.categories]
        number, self.callers = pd.factorize(pd.Index(callers, dtype=object))
        self.caller = number.astype(np.int32)[instances["scheduled_stack"].array.codes]
        self.cancelled = code_of(instances["end"], ("cancel", "delete")) >= 0
        self.opened = instances["scheduled_ns"].notna().to_numpy()
        self.coalesced = instances["coalesced"].to_numpy()
        sure = code_of(instances["reason"], (LOST,)) < 0
        self.wait = np.where(self.ran & sure, filled(instances["wait_ns"]), -1)


class _Group:
    """One bottom half in one context.

    Attributes:
        first: the number of its first instance.
    """

    def __init__(self) -> None:
        self.first = LAST
        self._scheduled = self._ran = self._cancelled = self._coalesced = 0
        self._wait, self._took = Times(), Times()
        self._roles: Counter[str] = Counter()
        self._schedulers: dict[tuple[str, str, str], _Scheduler] = {}
        self._longest: list[tuple[int, int, LongRun]] = []

    def add(self, work: _Work, rows: Positions) -> None:
        """Some of its instances."""
        self.first = min(self.first, int(work.number[rows].min()))
        runs = rows[work.ran[rows]]
        self._scheduled += int(work.opened[rows].sum())
        self._ran += len(runs)
        self._cancelled += int(work.cancelled[rows].sum())
        self._coalesced += int(work.coalesced[rows].sum())
        self._wait.add(_known(work.wait[rows]))
        self._took.add(_known(work.took[runs]))
        roles = work.instances["role"].iloc[runs].astype(object).value_counts()
        self._roles.update({str(role): int(count) for role, count in roles.items()})
        self._add_schedulers(work, rows[work.opened[rows]])
        self._add_longest(work, runs)

    def _add_schedulers(self, work: _Work, rows: Positions) -> None:
        instances, caller = work.instances, work.caller[rows]
        columns = [instances[f"scheduled_by_{column}"].iloc[rows] for column in ("role", "thread")]
        tid = instances["scheduled_by_tid"].iloc[rows].to_numpy(np.int64)
        group = numbered(caller, *(column.array.codes for column in columns))
        if not len(group):
            return
        _, first, counts = np.unique(group, return_index=True, return_counts=True)
        pairs = np.unique(np.stack([group, tid]), axis=1)
        for number, (at, count) in enumerate(zip(first.tolist(), counts.tolist(), strict=True)):
            role, thread = (str(column.iloc[at]) for column in columns)
            key = str(work.callers[caller[at]]), role, thread
            known = self._schedulers.setdefault(key, _Scheduler())
            known.count += count
            known.threads |= set(pairs[1][pairs[0] == number].tolist())
            known.first = min(known.first, (int(work.number[rows[at]]), int(tid[at])))

    def _add_longest(self, work: _Work, runs: Positions) -> None:
        known = runs[work.took[runs] >= 0]
        if len(known) > LONGEST:
            least = np.partition(work.took[known], -LONGEST)[-LONGEST]
            known = known[work.took[known] >= least]
        known = known[np.lexsort((work.number[known], -work.took[known]))][:LONGEST]
        columns = ["ended_ns", "ended_row", "role", "thread", "tid", "stack"]
        for row, (time, number, role, thread, tid, stack) in zip(
            known, work.instances[columns].iloc[known].astype(object).to_numpy(), strict=True
        ):
            long: LongRun = {
                "duration_ns": int(work.took[row]),
                "time_ns": int(time),
                "since_start_ns": 0,
                "row": int(number),
                "role": str(role),
                "thread": str(thread),
                "tid": int(tid),
                "stack": functions(str(stack)),
            }
            self._longest.append((-int(work.took[row]), int(work.number[row]), long))
        self._longest = sorted(self._longest, key=lambda one: one[:2])[:LONGEST]

    def statistics(self, name: str, context: str, start_ns: int) -> Statistics:
        """See ``Summarizing.end``."""
        most = sorted(self._schedulers.items(), key=lambda one: (-one[1].count, one[1].first))[
            :SCHEDULERS
        ]
        schedulers: list[Scheduler] = [
            {
                "caller": caller,
                "role": role,
                "thread": thread,
                "threads": len(known.threads),
                "tid": known.first[1],
                "count": known.count,
            }
            for (caller, role, thread), known in most
        ]
        return {
            "name": name,
            "context": context,
            "scheduled": self._scheduled,
            "ran": self._ran,
            "cancelled": self._cancelled,
            "coalesced": self._coalesced,
            "wait": self._wait.percentiles(),
            "duration": self._took.percentiles(),
            "roles": dict(sorted(self._roles.items(), key=lambda one: (-one[1], one[0]))),
            "scheduled_by": schedulers,
            "longest": [
                {**long, "since_start_ns": long["time_ns"] - start_ns}
                for _took, _number, long in self._longest
            ],
        }


@dataclass
class _Scheduler:
    """Who scheduled it how often; the number and the thread of the first."""

    count: int = 0
    threads: set[int] = field(default_factory=set)
    first: tuple[int, int] = (LAST, 0)


def _known(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return times[times >= 0]


def _caller(stack: str) -> str:
    """The function that called to schedule it."""
    caller = functions(stack)[:1]
    return caller[0] if caller and caller[0] not in ENDS else ""
