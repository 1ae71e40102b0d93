"""Whether a QEMU's loops still sleep where a look saw them sleep: a small part of what a look
costs, and says no more than that."""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.inspection.looker import Looker
from qtrace.process.live_source import LiveSource
from qtrace.qemu.aio.findings import keeps_big_lock, loop_threads
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import in_loop, waits_for_big_lock

ASLEEP = "S"


@dataclass(frozen=True)
class _Place:
    """Where a thread sleeps: its stack pointer, where it goes on, and all its return addresses, by
    where they lie."""

    tid: int
    waits_at: tuple[int, int]
    returns: tuple[tuple[int, int], ...]


class Glance:
    """Of one QEMU. Whether it runs at all (a signal, a tracer) shows in its main thread's state."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._places: tuple[_Place, ...] = ()

    def remember(self, look: Look) -> None:
        """A look that has just been taken. It is good for glances when it leaves nothing to be
        explained: each loop's thread is in its loop, nothing is pending, nobody waits for the
        BQL, or may keep it."""
        loops = loop_threads(look)
        self._places = ()
        if not look.main_loop or look.stopped or look.bottom_halves:
            return
        if keeps_big_lock(look) or any(waits_for_big_lock(look, t) for t in look.threads):
            return
        places = [self._place(look, thread) for thread in loops]
        if places and None not in places:
            self._places = tuple(place for place in places if place is not None)

    @property
    def is_good(self) -> bool:
        """Whether the look that was remembered is good for glances."""
        return bool(self._places)

    def holds(self) -> bool:
        """Whether all of them sleep there now. False also when that cannot be told."""
        source = self._looker.source
        if not self._places or not isinstance(source, LiveSource):
            return False
        if source.letter(source.pid) != ASLEEP:
            return False
        return all(self._is_there(source, place) for place in self._places)

    def _place(self, look: Look, thread: Thread) -> _Place | None:
        returns = self._looker.returns(thread.tid)
        if not (thread.whole and returns and thread.waits_at and in_loop(look, thread)):
            return None
        return _Place(thread.tid, thread.waits_at, returns)

    def _is_there(self, source: LiveSource, place: _Place) -> bool:
        """The same call from the same place of the stack, below the same return addresses: the
        same functions, called from the same places."""
        if source.sleeps_at(place.tid) != place.waits_at:
            return False
        return self._looker.has_words(place.returns)
