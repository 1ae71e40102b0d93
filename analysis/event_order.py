"""What happened to a bottom half in which order, where the notes of two threads crossed.

A probe notes a schedule or a run after the atomic operation on QEMUBH.flags, and a thread may be
preempted in between: its note then bears a time behind that of what another thread did later. The
flags that the operation found tell it apart, for they cannot lie: nothing is inserted that is
pending, nothing runs that is not. Where the noted order breaks this rule, the nearest one that
keeps it is taken.

Whichever such order is taken, as many instances begin and run in it, and as many end otherwise:
only which of two schedules, microseconds apart, belongs to which run may be the other way round.
Of the very last schedule, and a cancel or delete that crossed with it, nothing tells: it stays
pending.

An order is taken only if no event was lost there, each thread's own events stay in order, and it
comes out even: at its end nothing is pending, and what follows keeps the rule as it was noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.brackets import Codes, Positions, starts_of
from qtrace.analysis.losses import disturbed

# What can happen to a bottom half. What a schedule did is told by flags; SCHEDULE: without them.
SCHEDULE, RUN, CANCEL, DELETE, INSERTED, REQUEUED, COALESCED = range(7)
# What it may be before that: QUEUED is in its list, but cancelled; IDLE either that or in none.
ANY, FREE, QUEUED, IDLE, DUE = range(5)
NEVER = -1
# What it is afterwards. Between cancel and insertion a poll has taken it off its list.
AFTER = np.array(
    [
        # schedule, run, cancel, delete, inserted, requeued, coalesced
        [ANY, FREE, IDLE, FREE, DUE, DUE, DUE],
        [ANY, NEVER, FREE, FREE, DUE, NEVER, NEVER],
        [ANY, NEVER, QUEUED, FREE, DUE, DUE, NEVER],
        [ANY, NEVER, IDLE, FREE, DUE, DUE, NEVER],
        [ANY, FREE, QUEUED, FREE, NEVER, NEVER, DUE],
    ],
    np.int8,
)
AFTER_TABLE: list[list[int]] = AFTER.tolist()
# How many events are looked at, how many of them may be late, and from how many moments at which
# nothing was pending; what was seen took 12, 2 and 1, and with 64 threads that ask for one bottom
# half up to 100, 3 and 1.
WINDOW, LATE, MOMENTS = 128, 3, 3
# Steps of one search: a late one may have come before any of so many.
STEPS = 20_000
# Between its operation and its note no thread is held up for longer: what lies further apart did
# not cross. It is also how far ahead a part of a recording has to be known (analysis/slices.py).
LATE_NS = 500_000_000


@dataclass(frozen=True)
class Before:
    """What is known of each group from before these events.

    Attributes:
        state: what its bottom half was (ANY: not known).
        time_ns: of its last event; the smallest int64 for none.
    """

    state: npt.NDArray[np.int8]
    time_ns: npt.NDArray[np.int64]

    @classmethod
    def unknown(cls, groups: int) -> Before:
        """Of so many groups, nothing."""
        return cls(np.full(groups, ANY, np.int8), np.full(groups, np.iinfo(np.int64).min))


def nearest_legal_order(
    group: Codes,
    kind: npt.NDArray[np.int8],
    tid: Codes,
    time: Codes,
    losses: pd.DataFrame | None,
    before: Before | None = None,
) -> tuple[Positions, list[tuple[int, int]]]:
    """The events in the order in which they happened.

    Args:
        group: of each event; those of a group, a bottom half, stand together as they were noted.
        kind: INSERTED and so on.
        losses: ``since_ns`` and ``until_ns``, as of a ``TraceFile``.
        before: by the group's number; nothing is known when None.

    Returns:
        Positions: where no legal order is found, they stay as they are. And which stretches of them
        (first, behind the last) were put in order.
    """
    order = np.arange(len(group))
    spans: list[tuple[int, int]] = []
    if not len(group):
        return order, spans
    before = before or Before.unknown(int(group.max()) + 1)
    start, state = _states(group, kind, before.state)
    broken = np.flatnonzero(AFTER[state, kind] == NEVER)
    ends = _ends(group, broken)
    crossed = _has_company(tid, np.maximum(start[broken], broken - WINDOW), ends)
    done = 0
    for at, end in zip(broken[crossed].tolist(), ends[crossed].tolist(), strict=True):
        if at < done or AFTER_TABLE[state[at]][kind[at]] != NEVER:
            continue
        begin = max(int(start[at]), done, at - WINDOW)
        begin += int(time[begin : at + 1].searchsorted(time[at] - LATE_NS))
        until = at + int(time[at:end].searchsorted(time[at] + LATE_NS, side="right"))
        first, found = _search(kind[:until], tid, state, begin, at)
        last = first + len(found)
        if found and not (losses is not None and _lossy(group, time, first, last, losses, before)):
            order[first:last] = first + np.array(found)
            spans.append((first, last))
            done = last
            _go_on(state, kind, order, first, last, end)
    return order, spans


def _ends(group: Codes, places: Positions) -> Positions:
    """Where the events end that are looked at from each place."""
    starts = np.flatnonzero(starts_of(group))
    ends = np.append(starts[1:], len(group))
    own: Positions = ends[np.searchsorted(starts, places, "right") - 1]
    return np.minimum(own, places + WINDOW)


def _has_company(tid: Codes, first: Positions, end: Positions) -> npt.NDArray[np.bool_]:
    """Whether more than one thread had to do with it there: what one noted is in order.

    While the probes come and go, a busy thread's runs are seen without their schedules.
    """
    changes = np.cumsum(np.append(False, tid[1:] != tid[:-1]))
    found: npt.NDArray[np.bool_] = changes[end - 1] > changes[first]
    return found


def _states(
    group: Codes, kind: npt.NDArray[np.int8], initial: npt.NDArray[np.int8]
) -> tuple[Positions, npt.NDArray[np.int8]]:
    """Where the group of each event begins, and what its bottom half is before it, as noted."""
    place = np.arange(len(group))
    start = np.maximum.accumulate(np.where(starts_of(group), place, 0))
    # All but a cancel leave it in the same state, whatever it was before.
    telling = np.maximum.accumulate(np.where(kind != CANCEL, place, -1))
    before = np.concatenate([[-1], telling[:-1]])
    known = before >= start
    state = np.where(known, AFTER[ANY, kind[before]], initial[group]).astype(np.int8)
    cancelled = place - np.where(known, before + 1, start) > 0
    return start, np.where(cancelled, AFTER[state, CANCEL], state)


def _search(
    kind: npt.NDArray[np.int8], tid: Codes, state: npt.NDArray[np.int8], start: int, at: int
) -> tuple[int, list[int]]:
    """Where the part begins that has to be put in order so that the event ``at`` keeps the rule,
    and its order; none when there is none.
    """
    moments = [place for place in range(at, start - 1, -1) if state[place] != DUE][:MOMENTS]
    for late in range(1, LATE + 1):
        for first in moments:
            search = Search(kind[first:].tolist(), tid[first : len(kind)].tolist(), at - first)
            found = search.run(int(state[first]), late)
            if found:
                return first, found
    return at, []


def _lossy(
    group: Codes, time: Codes, first: int, last: int, losses: pd.DataFrame, before: Before
) -> bool:
    """Whether events were lost between what came before these and what comes after them."""
    since, until = int(before.time_ns[group[first]]), np.iinfo(np.int64).max
    if first and group[first - 1] == group[first]:
        since = time[first - 1]
    if last < len(group) and group[last] == group[first]:
        until = time[last]
    return bool(disturbed(np.array([since]), np.array([until]), losses)[0])


def _go_on(
    state: npt.NDArray[np.int8], kind: npt.NDArray[np.int8], order: Positions, first: int,
    last: int, end: int,
) -> None:  # fmt: skip
    """Correct the states up to where they follow from the noted order again."""
    now = int(state[first])
    for place in order[first:last]:
        now = AFTER_TABLE[now][kind[place]]
    for place in range(last, end):
        state[place] = now
        if kind[place] != CANCEL:
            break
        now = AFTER_TABLE[now][CANCEL]


@dataclass(slots=True)
class Search:
    """For a legal order of a few events.

    Of ``kinds`` and ``tids`` as noted, the one at ``broken`` is where the rule is broken first.
    """

    kinds: list[int]
    tids: list[int]
    broken: int
    _order: list[int] = field(default_factory=list)
    _taken: set[int] = field(default_factory=set)
    _steps: int = 0

    def run(self, state: int, late: int) -> list[int]:
        """Places of the events in order, as many as it takes, of which so many were noted late at
        most; empty when there is none.
        """
        return self._order if self._extend(state, 0, late) else []

    def _extend(self, state: int, front: int, late: int) -> bool:
        """Take one more event. All before ``front`` are taken, and so many more may be late."""
        self._steps += 1
        while front in self._taken:
            front += 1
        if len(self._order) == front > self.broken and state != DUE and self._is_legal(state):
            return True
        if self._steps > STEPS:
            return False
        threads = set()
        for place in range(front, len(self.kinds)):
            if place > front and not late:
                break
            if place in self._taken or self.tids[place] in threads:
                continue
            threads.add(self.tids[place])
            after = AFTER_TABLE[state][self.kinds[place]]
            if after == NEVER:
                continue
            self._order.append(place)
            self._taken.add(place)
            if self._extend(after, front, late - (place > front)):
                return True
            self._taken.remove(self._order.pop())
        return False

    def _is_legal(self, state: int) -> bool:
        """Whether what follows as noted keeps the rule, up to where the state is no matter."""
        for kind in self.kinds[len(self._order) :]:
            state = AFTER_TABLE[state][kind]
            if kind != CANCEL:
                return state != NEVER
        return True
