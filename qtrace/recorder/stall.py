"""While recording: what stays pending for too long, and who is in its way.

Looks at the target's memory and threads through /proc, which stops nothing: one look takes
about a millisecond. Nothing is concluded here; the rows tell what was seen, and when.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from qtrace.roles import Role
from qtrace.target.aio.model import BottomHalf, Look
from qtrace.target.aio.waits import behind, same_chain
from qtrace.target.aio.why import STRANDED, Finding, explain
from qtrace.target.look import Looker
from qtrace.target.scan import BottomHalf as Watched
from qtrace.trace.schema import UNREADABLE, Event

# Looks that are to show one and the same wait are at least this far apart.
APART_NS = 500_000_000

Key = tuple[int, int, int]
"""Callback, context, argument: what pairs a one-shot's schedule with its run."""


@dataclass(slots=True)
class _Stall:
    """A bottom half that nobody can run: the look that first showed this wait, and when the
    next row about it is due."""

    first: Look
    due_ns: int
    written_ns: int = 0
    told: bool = False


class Stalls:
    """Looks for stalls while a recording goes on.

    Args:
        looker: makes the one that takes the looks, when first needed.
        watched: the bottom halves whose stalls are written down while they last; of others
            only what is shown at the very end is, because nothing records their runs.
        bias: of the executable.
        stall_after_ns: how long something may be pending.
    """

    def __init__(
        self,
        looker: Callable[[], Looker],
        watched: Sequence[Watched],
        bias: int,
        stall_after_ns: int,
    ) -> None:
        self._make_looker = looker
        self._looker: Looker | None = None
        self._names = {half.callback + bias: half.name for half in watched}
        self._stall_after_ns = stall_after_ns
        self._apart_ns = min(APART_NS, stall_after_ns)
        # When each pending instance was scheduled, 0 for before the recording.
        self._scheduled: dict[Key, list[int]] = {}
        self._stalls: dict[tuple[int, Key], _Stall] = {}
        self._next_ns = 0
        self._sentences: list[str] = []

    def warnings(self) -> list[str]:
        """What is to be said since the last call: each stall once, and again at the end."""
        said, self._sentences = self._sentences, []
        return said

    def saw(self, events: Iterable[Event]) -> None:
        """Take note of what was scheduled and what ran."""
        for event in events:
            key = _key_of(event)
            if event.event == "schedule":
                self._scheduled.setdefault(key, []).append(event.time_ns)
                self._next_ns = min(self._next_ns, event.time_ns + self._stall_after_ns)
            elif event.event == "run" and (times := self._scheduled.get(key)):
                times.pop()

    def begin(self, drain: Callable[[], list[Event]]) -> list[Event]:
        """What was pending before the probes were armed, and what is in its way.

        Args:
            drain: the events up to now; what they scheduled is theirs.
        """
        look = self._look()
        events = drain()
        # Some of these may have run since the look: what was scheduled counts, not what is left.
        scheduled = Counter(_key_of(event) for event in events if event.event == "schedule")
        counted: dict[Key, int] = {}
        pending = []
        for half in look.bottom_halves:
            if half.will_run and half.cb in self._names:
                key = _key(half)
                counted[key] = counted.get(key, 0) + 1
                if counted[key] > scheduled[key]:
                    self._scheduled.setdefault(key, []).append(0)
                    pending.append(self._pending_row(look, half))
        self.saw(events)
        return [*pending, *self._rows(look, at_end=False), *events]

    def check(self) -> list[Event]:
        """The rows of a look, when one is due."""
        now = time.monotonic_ns()
        if now < self._next_ns:
            return []
        look = self._look()
        rows = self._rows(look, at_end=False)
        new = any(stall.first is look for stall in self._stalls.values())
        self._next_ns = now + (self._apart_ns if new else self._stall_after_ns)
        return rows

    def end(self) -> list[Event]:
        """The last look's rows: they bear ``end`` in their detail."""
        look = self._look()
        rows = self._rows(look, at_end=False)
        if any(stall.first is look for stall in self._stalls.values()):
            # First seen now, or moved by the recorder itself: gdb's leaving stops every thread.
            time.sleep(self._apart_ns / 1e9)
            look = self._look()
        return rows + self._rows(look, at_end=True)

    def _look(self) -> Look:
        if self._looker is None:
            self._looker = self._make_looker()
        return self._looker.look(details=False)

    def _rows(self, look: Look, *, at_end: bool) -> list[Event]:
        if look.stopped:
            self._stalls = {}
            return []
        rows: list[Event] = []
        stalls: dict[tuple[int, Key], _Stall] = {}
        for half, finding in _stranded(look):
            identity = (half.address, _key(half))
            stall = self._stalls.get(identity)
            if stall is None or not same_chain(stall.first, look, finding.thread):
                stall = _Stall(look, look.time_ns)
            stalls[identity] = stall
            own: list[Event] = []
            proven = look.time_ns - stall.first.time_ns >= self._apart_ns
            if half.cb in self._names:
                own = self._row_of_watched(look, half, finding, stall, at_end)
            elif at_end and proven:
                own = self._rows_of_other(look, half, finding, stall)
            if own or proven:
                self._tell(finding, stall, at_end)
            rows += own
        self._stalls = stalls
        return rows

    def _tell(self, finding: Finding, stall: _Stall, at_end: bool) -> None:
        if at_end or not stall.told:
            stall.told = True
            self._sentences.append(finding.sentence)

    def _row_of_watched(
        self, look: Look, half: BottomHalf, finding: Finding, stall: _Stall, at_end: bool
    ) -> list[Event]:
        """A row at once, one soon after, then ever more rarely, and one at the end.

        One whose schedule no probe saw (lost, or by another way than its call site) is as old
        as the first look that met it.
        """
        times = self._scheduled.setdefault(_key(half), [])
        since = min(times) if times else stall.first.time_ns
        too_young = look.time_ns - since < self._stall_after_ns
        if not at_end and (too_young or look.time_ns < stall.due_ns):
            return []
        rows = []
        if not times:
            times.append(since)
            rows.append(self._pending_row(stall.first, half))
        wait = look.time_ns - stall.written_ns if stall.written_ns else 0
        stall.due_ns = look.time_ns + max(self._apart_ns, 2 * wait)
        stall.written_ns = look.time_ns
        return [*rows, self._blocked_row(look, half, finding, at_end=at_end)]

    def _rows_of_other(
        self, look: Look, half: BottomHalf, finding: Finding, stall: _Stall
    ) -> list[Event]:
        before = next(f for h, f in _stranded(stall.first) if h.address == half.address)
        return [
            self._pending_row(stall.first, half),
            self._blocked_row(stall.first, half, before, at_end=False),
            self._blocked_row(look, half, finding, at_end=True),
        ]

    def _pending_row(self, look: Look, half: BottomHalf) -> Event:
        """It was pending then; when it was scheduled, and by whom, is not known."""
        return Event(
            time_ns=look.time_ns,
            event="schedule",
            name=self._name(half),
            context=look.context(half.ctx).name,
            ctx=half.ctx,
            callback=half.cb,
            opaque=half.opaque,
            detail={"pending_already": True, "bh": f"{half.address:#x}"},
        )

    def _blocked_row(
        self, look: Look, half: BottomHalf, finding: Finding, *, at_end: bool
    ) -> Event:
        thread, polls = finding.thread, finding.polls
        frames = tuple(reversed(thread.frames))
        detail = {
            "pending_in": finding.context.name,
            "pending_ctx": f"{half.ctx:#x}",
            "blocked_in": thread.blocked_in,
            "waits_at": [f"{value:#x}" for value in thread.waits_at],
            "cpu_ns": thread.cpu_ns,
            "behind": behind(look, thread),
            "sentence": finding.sentence,
        }
        return Event(
            time_ns=look.time_ns,
            event="blocked",
            tid=thread.tid,
            thread=thread.name,
            role=cast(Role, thread.role),
            name=self._name(half),
            context=polls.label if polls else "",
            ctx=polls.address if polls else 0,
            bh=half.address,
            callback=half.cb,
            opaque=half.opaque,
            stack=frames if thread.whole else (UNREADABLE, *frames),
            detail=detail | ({"end": True} if at_end else {}),
        )

    def _name(self, half: BottomHalf) -> str:
        return self._names.get(half.cb) or half.name or f"{half.cb:#x}"


def _stranded(look: Look) -> list[tuple[BottomHalf, Finding]]:
    """Each bottom half that nobody can run now, with a finding of its own."""
    return [
        (half, one)
        for finding in explain(look)
        if finding.kind == STRANDED
        for half in finding.bottom_halves
        for one in explain(replace(look, bottom_halves=(half,)))
        if one.kind == STRANDED
    ]


def _key_of(event: Event) -> Key:
    return (event.callback, event.ctx, event.opaque)


def _key(half: BottomHalf) -> Key:
    return (half.cb, half.ctx, half.opaque)
