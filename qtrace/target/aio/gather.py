"""All lists of one look; what cannot be read is noted, and is no reason to show nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from qtrace.target.aio.model import BottomHalf, Context
from qtrace.target.aio.settled import Torn
from qtrace.target.aio.walk import AioReader, Missing

T = TypeVar("T")


class Gathering:
    """Reads for one look.

    Attributes:
        torn, missing, unread, dark: as those of ``Look``.
    """

    def __init__(self, reader: AioReader, missing: Iterable[str]) -> None:
        """``missing``: what ``reader.layout`` lacks."""
        self._reader = reader
        self.torn: list[str] = []
        self.missing = set(missing)
        self.unread: list[int] = []
        self.dark: list[int] = []

    def one(self, read: Callable[[], T]) -> T | None:
        """What a method of the reader returns, None where it cannot."""
        try:
            return read()
        except Torn as error:
            self.torn.append(error.what)
        except Missing as error:
            self.missing.add(error.fact)
        return None

    def each(self, contexts: Iterable[Context], read: Callable[[int], list[T]]) -> tuple[T, ...]:
        """What it returns for each context."""
        found: list[T] = []
        for context in contexts:
            found += self.one(partial(read, context.address)) or ()
        return tuple(found)

    def contexts(
        self, pid: int, thread_pointers: Mapping[int, int], names: Mapping[int, str]
    ) -> tuple[Context, ...]:
        """As ``AioReader.contexts``."""
        found = self.one(partial(self._reader.contexts, pid, thread_pointers, names))
        self.dark = [pid] if found is None else self._reader.dark(pid, thread_pointers)
        return tuple(found or ())

    def bottom_halves(self, contexts: Iterable[Context]) -> tuple[BottomHalf, ...]:
        """As ``AioReader.bottom_halves``, of each context."""
        found: list[BottomHalf] = []
        for context in contexts:
            halves = self.one(partial(self._reader.bottom_halves, context.address))
            if halves is None:
                self.unread.append(context.address)
            found += halves or ()
        return tuple(found)
