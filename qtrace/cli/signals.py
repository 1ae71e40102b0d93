"""Ctrl-C, SIGTERM, SIGHUP: the first asks for an end in good order, the next breaks that off."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BrokenOff(KeyboardInterrupt):
    """Who asked twice. Nothing of a target needs to be put back then.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """What a command does at a signal, as long as the context lasts.

    The first is noted, as whoever works in a loop looks for it between two rounds: an exception
    from a signal handler could come up inside one of bcc's callbacks, where ctypes drops it. Each
    later one raises BrokenOff at once, and so does the first one after ``no_loop``.
    """

    def __init__(self) -> None:
        self._reason = ""
        self._noting = True
        self._held_off = False
        self._late = 0

    @property
    def reason(self) -> str:
        """The name of the signal that asked for the end; empty as long as none has."""
        return self._reason

    def forget(self) -> None:
        """It was heeded: the next one is noted again."""
        self._reason, self._noting = "", True

    def no_loop(self) -> None:
        """Nobody looks for what is noted any more: from here on each one raises BrokenOff."""
        self._noting = False

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Whoever breaks off waits until the block is left: it puts back what was changed."""
        self._held_off = True
        try:
            yield
        finally:
            self._held_off = False
        if self._late:
            raise BrokenOff(self._late)

    def __enter__(self) -> Signals:
        self._before = [signal.signal(number, self._note) for number in NUMBERS]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in zip(NUMBERS, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._noting and not self._reason:
            self._reason = signal.Signals(number).name
        elif self._held_off:
            self._late = number
        else:
            raise BrokenOff(number)
