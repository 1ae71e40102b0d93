"""While recording: when to look at what does not go on, and the rows of the looks.

A look reads the target's memory and threads through /proc, which stops nothing, and takes about a
millisecond. Nothing is concluded here; the rows tell what was seen, and when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import APART_NS
from qtrace.qemu.aio.model import Look
from qtrace.record.held_rows import Holds
from qtrace.record.pending import Pending
from qtrace.record.silent_loops import Hangs
from qtrace.sites.scan import BottomHalf as Watched
from qtrace.trace.schema import Event


class Stalls:
    """Looks for bottom halves, loops and targets that do not go on, while a recording does.

    Args:
        looker: makes the one that takes the looks, when first needed; None where none can be
            taken, or is wanted. Then no row of a look comes.
        watched: the bottom halves whose stalls are written down while they last.
        bias: of the executable.
        stall_after_ns: how long something may be pending, and a loop away.
        by_us: see ``Holds``.
        sentence: to be said first.
        from_start: the program is yet to run: nothing can have stalled before ``stall_after_ns``,
            and until then the processors are all its own.
    """

    def __init__(
        self,
        looker: Callable[[], Looker] | None,
        watched: Sequence[Watched],
        bias: int,
        stall_after_ns: int,
        by_us: bool = False,
        sentence: str = "",
        from_start: bool = False,
    ) -> None:
        self._make_looker = looker
        self._looker: Looker | None = None
        self._stall_after_ns = stall_after_ns
        self._apart_ns = min(APART_NS, stall_after_ns)
        self._sentences: list[str] = []
        say = self._sentences.append
        self._pending = Pending(watched, bias, stall_after_ns, self._apart_ns, say)
        self._holds = Holds(APART_NS, by_us, say)
        self._hangs: Hangs | None = None
        self._next_ns = time.monotonic_ns() + stall_after_ns if from_start else 0
        if sentence:
            say(sentence)

    def warnings(self) -> list[str]:
        """What is to be said since the last call: each stall once, and again at the end."""
        said = self._sentences[:]
        self._sentences.clear()
        return said

    @property
    def pending(self) -> int:
        """How many of the watched bottom halves are."""
        return self._pending.count

    def saw(self, events: Iterable[Event]) -> None:
        """Take note of what was scheduled and what ran."""
        self._pending.saw(events)

    def begin(self, drain: Callable[[], list[Event]]) -> list[Event]:
        """What was pending before the probes were armed, and what is in its way.

        Args:
            drain: the events up to now; what they scheduled is theirs.
        """
        if self._make_looker is None:
            events = drain()
            self.saw(events)
            return events
        look = self._look()
        events = drain()
        pending = self._pending.before(look, events)
        self.saw(events)
        rows = self._rows(look)
        self._plan(look)
        return [*pending, *rows, *events]

    def check(self) -> list[Event]:
        """The rows of a look, when one is due."""
        if self._make_looker is None:
            return []
        now = time.monotonic_ns()
        due = min(self._next_ns, self._pending.due_ns or self._next_ns)
        at_once = self._hangs is not None and self._hangs.see(now)
        if now < due and not at_once:
            return []
        look = self._look()
        rows = self._rows(look)
        self._plan(look)
        return rows

    def end(self) -> list[Event]:
        """The last look's rows: they bear ``end`` in their detail."""
        if self._make_looker is None:
            return []
        look = self._look()
        rows = self._rows(look)
        if self._pending.first_shown_by(look) or self._holds.unproven:
            # First seen now, or moved by the recorder itself: gdb's leaving stops every thread.
            time.sleep(max(self._apart_ns, APART_NS if self._holds.unproven else 0) / 1e9)
            look = self._look()
        rows += self._holds.rows(look, at_end=True)
        if look.stopped or self._hangs is None:
            return rows
        ended, look = self._hangs.end(look)
        return rows + ended + self._pending.rows(look, at_end=True, told=self._hangs.told)

    def _look(self) -> Look:
        if self._looker is None:
            assert self._make_looker is not None
            self._looker = self._make_looker()
            self._hangs = Hangs(self._looker, self._stall_after_ns, self._sentences.append)
        return self._looker.look(details=False)

    def _rows(self, look: Look) -> list[Event]:
        assert self._hangs is not None
        rows = self._holds.rows(look)
        if look.stopped:
            self._hangs.forget()
            self._pending.forget()
            return rows
        rows += self._hangs.rows(look)
        return rows + self._pending.rows(look, at_end=False, told=self._hangs.told)

    def _plan(self, look: Look) -> None:
        """When to look again: soon where something was seen for the first time."""
        assert self._hangs is not None
        now = time.monotonic_ns()
        times = [now + self._stall_after_ns]
        if self._pending.first_shown_by(look):
            times.append(now + self._apart_ns)
        if self._holds.unproven:
            times.append(now + APART_NS)
        if (due := self._hangs.due_ns(look)) is not None:
            times.append(due)
        self._next_ns = min(times)
        self._pending.due_ns = self._next_ns
