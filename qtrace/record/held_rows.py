"""While recording: a target that somebody holds, so that nothing in it moves."""

from __future__ import annotations

from collections.abc import Callable

from qtrace.qemu.aio.model import Look
from qtrace.trace.schema import Event
from qtrace.units import show

TRACER = "tracer"


class Holds:
    """Takes note of when a target is held, by whom, and when it goes on.

    Args:
        apart_ns: what two looks so far apart show is told; a debugger's stop may be over at once.
        by_us: the recorder is a tracer itself, which stops the target again and again.
        say: takes what is to be told at once.
    """

    def __init__(self, apart_ns: int, by_us: bool, say: Callable[[str], None]) -> None:
        self._apart_ns = apart_ns
        self._by_us = by_us
        self._say = say
        self._since_ns = 0
        self._until_ns = 0
        self._told = False

    @property
    def unproven(self) -> bool:
        """One look has shown it, and another one has to."""
        return bool(self._since_ns) and not self._told

    def rows(self, look: Look, *, at_end: bool = False) -> list[Event]:
        """The rows of a look."""
        why = look.held
        if not why or (self._by_us and TRACER in why):
            return self._released(look)
        if not self._since_ns:
            self._since_ns = look.time_ns
        self._until_ns = look.time_ns
        if look.time_ns - self._since_ns < self._apart_ns or (self._told and not at_end):
            return []
        if not self._told:
            self._say(f"the target is {why}: nothing in it can move")
        self._told = True
        detail = {"why": why, "since_ns": self._since_ns} | ({"end": True} if at_end else {})
        return [Event(look.time_ns, "held", detail=detail)]

    def _released(self, look: Look) -> list[Event]:
        told, lasted = self._told, self._until_ns - self._since_ns
        self._told, self._since_ns = False, 0
        if not told:
            return []
        self._say(f"the target goes on after at least {show(lasted, 'ns')}")
        return [Event(look.time_ns, "released", detail={"held_ns": lasted})]
