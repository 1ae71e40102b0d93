"""While recording: bottom halves that stay pending for too long, and who is in their way.

Nothing is concluded here; the rows tell what looks showed, and when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace

from qtrace.qemu.aio.findings import Finding, stays, stranded
from qtrace.qemu.aio.model import BottomHalf, Look
from qtrace.record.blocked_rows import blocked_row
from qtrace.sites.scan import BottomHalf as Watched
from qtrace.trace.schema import Event

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


class Pending:
    """What is pending while a recording goes on.

    Args:
        watched: the bottom halves whose stalls are written down while they last; of others
            only what is shown at the very end is, because nothing records their runs.
        bias: of the executable.
        stall_after_ns: how long something may be pending.
        apart_ns: looks that are to show one and the same wait are at least this far apart.
        say: takes what is to be told at once: each stall once, and again at the end.

    Attributes:
        due_ns: when the oldest schedule since the last look will have been pending for too long.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        bias: int,
        stall_after_ns: int,
        apart_ns: int,
        say: Callable[[str], None],
    ) -> None:
        self._names = {half.callback + bias: half.name for half in watched}
        self._stall_after_ns = stall_after_ns
        self._apart_ns = apart_ns
        self._say = say
        # When each pending instance was scheduled, 0 for before the recording.
        self._scheduled: dict[Key, list[int]] = {}
        self._stalls: dict[tuple[int, Key], _Stall] = {}
        self.due_ns = 0

    @property
    def count(self) -> int:
        """How many are, as far as their schedules and runs tell."""
        return sum(map(len, self._scheduled.values()))

    def saw(self, events: Iterable[Event]) -> None:
        """Take note of what was scheduled and what ran."""
        for event in events:
            key = _key_of(event)
            if event.event == "schedule":
                self._scheduled.setdefault(key, []).append(event.time_ns)
                self.due_ns = min(self.due_ns, event.time_ns + self._stall_after_ns)
            elif event.event == "run" and (times := self._scheduled.get(key)):
                times.pop()

    def before(self, look: Look, events: Iterable[Event]) -> list[Event]:
        """The rows of what was pending before the probes were armed.

        Args:
            events: those up to now; what they scheduled is theirs.
        """
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
        return pending

    def first_shown_by(self, look: Look) -> bool:
        """Whether a look is the first one that shows some stall."""
        return any(stall.first is look for stall in self._stalls.values())

    def forget(self) -> None:
        """Nothing can move now: what looks show has to be shown anew."""
        self._stalls = {}

    def rows(self, look: Look, *, at_end: bool, told: Container[int] = ()) -> list[Event]:
        """The rows of a look.

        Args:
            told: threads of which it was said already that they do not come back, and what
                waits behind them.
        """
        rows: list[Event] = []
        stalls: dict[tuple[int, Key], _Stall] = {}
        for half, finding in _stranded(look):
            identity = (half.address, _key(half))
            stall = self._stalls.get(identity)
            if stall is None or not stays(stall.first, look, finding.thread):
                stall = _Stall(look, look.time_ns)
            stalls[identity] = stall
            own: list[Event] = []
            proven = look.time_ns - stall.first.time_ns >= self._apart_ns
            if half.cb in self._names:
                own = self._row_of_watched(look, half, finding, stall, at_end)
            elif at_end and proven:
                own = self._rows_of_other(look, half, finding, stall)
            known = half.cb not in self._names and finding.thread.tid in told
            if (own or proven) and not known:
                self._tell(finding, stall, at_end)
            rows += own
        self._stalls = stalls
        return rows

    def _tell(self, finding: Finding, stall: _Stall, at_end: bool) -> None:
        if at_end or not stall.told:
            stall.told = True
            self._say(finding.sentence)

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
            callback=half.cb or 0,
            opaque=half.opaque or 0,
            detail={"pending_already": True, "bh": f"{half.address:#x}"},
        )

    def _blocked_row(
        self, look: Look, half: BottomHalf, finding: Finding, *, at_end: bool
    ) -> Event:
        detail = {"pending_in": finding.context.name, "pending_ctx": f"{half.ctx:#x}"}
        row = blocked_row(look, finding, detail, at_end=at_end)
        return replace(
            row,
            name=self._name(half),
            bh=half.address,
            callback=half.cb or 0,
            opaque=half.opaque or 0,
        )

    def _name(self, half: BottomHalf) -> str:
        return self._names.get(half.cb or 0) or half.label


def _stranded(look: Look) -> list[tuple[BottomHalf, Finding]]:
    """Each bottom half that nobody can run now, with a finding of its own."""
    return [
        (half, one)
        for finding in stranded(look)
        for half in finding.bottom_halves
        for one in stranded(replace(look, bottom_halves=(half,)))
    ]


def _key_of(event: Event) -> Key:
    return (event.callback, event.ctx, event.opaque)


def _key(half: BottomHalf) -> Key:
    return (half.cb or 0, half.ctx, half.opaque or 0)
