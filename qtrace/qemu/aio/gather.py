"""One look, of whatever shows a QEMU; what cannot be read is noted, and is no reason to show
nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.model import (
    BottomHalf,
    Context,
    Coroutine,
    Ending,
    Handler,
    Look,
    Thread,
    has_main_loop,
)
from qtrace.qemu.aio.walk import AioReader, Missing

T = TypeVar("T")


class Shown(Protocol):
    """A QEMU as gdb shows it, or as it is read through /proc or of a core."""

    reader: AioReader

    @property
    def pid(self) -> int: ...
    @property
    def program(self) -> str: ...

    def present(self) -> Mapping[int, str]:
        """The names of the threads that there are now, by tid. Raises NoSuchProcess."""

    def pointers(self) -> Mapping[int, int]:
        """fs_base of these threads, as far as known."""

    def threads(self, contexts: Sequence[Context]) -> Sequence[Thread]:
        """All of them, with their stacks."""

    def coroutine(self, co: int) -> tuple[tuple[str, ...], int | None]:
        """The stack of a coroutine of its own, leaf first, and the tid of the thread that is in it.

        Without frames it runs, or cannot be read. The tid is None when it sleeps, 0 when the
        thread does not show. Raises ``Torn``.
        """

    def outer_tid(self, tid: int) -> int:
        """As ``qtrace.process.look_source.Source.outer_tid``."""

    def ending(self) -> Ending | None:
        """As ``Look.ending``."""

    def differing(self) -> Sequence[str]:
        """As ``Look.differing``."""

    def held(self, threads: Sequence[Thread]) -> str:
        """As ``Look.held``. Raises NoSuchProcess."""

    def absent(self) -> Sequence[str]:
        """As ``Look.absent``."""


def take_look(shown: Shown, *, details: bool = True) -> Look:
    """Everything there is to see now.

    Args:
        details: fd handlers, scheduled coroutines and the stacks of jobs, too. No finding needs
            them.
    """
    reader = shown.reader
    lists = Gathering(reader, reader.layout.missing())
    began = time.monotonic_ns()
    names = shown.present()
    contexts = lists.contexts(shown.pid, shown.pointers(), names)
    bottom_halves = lists.bottom_halves(contexts)
    threads = tuple(shown.threads(contexts))
    jobs = lists.one(reader.jobs)
    holder = lists.one(reader.bql_holder)
    # Only such a one waits for them.
    waited_for = any("synchronize_rcu" in thread.functions for thread in threads)
    pointers = shown.pointers() if waited_for else {}
    readers = lists.one(partial(reader.rcu_readers, pointers)) if waited_for else []
    detailed = contexts if details else ()
    known = [job.co for job in jobs or () if job.co and details]
    read = {co: lists.one(partial(shown.coroutine, co)) for co in known}
    coroutines = {co: one for co, one in read.items() if one is not None}
    # Last of all who holds it: one that ends in mid-look has memory that reads as nothing.
    return Look(
        time_ns=began,
        contexts=contexts,
        bottom_halves=bottom_halves,
        handlers=lists.handlers(detailed),
        scheduled=lists.scheduled(detailed),
        jobs=None if jobs is None else tuple(jobs),
        threads=threads,
        bql_holder=shown.outer_tid(holder) if holder else holder,
        bql=reader.layout.bql,
        rcu_readers=None if readers is None else tuple(map(shown.outer_tid, readers)),
        ending=shown.ending(),
        main_loop=has_main_loop(shown.program),
        differing=tuple(shown.differing()),
        torn=tuple(lists.torn),
        missing=tuple(sorted(lists.missing)),
        unread=tuple(lists.unread),
        unread_handlers=tuple(lists.unread_handlers),
        unread_coroutines=tuple(lists.unread_coroutines),
        dark=tuple(lists.dark),
        coroutine_frames={co: frames for co, (frames, _tid) in coroutines.items()},
        awake={co: tid for co, (_frames, tid) in coroutines.items() if tid is not None},
        held=shown.held(threads),
        absent=tuple(shown.absent()),
    )


class Gathering:
    """Reads for one look.

    Attributes:
        torn, missing, unread, dark: as those of ``Look``; ``unread_handlers`` and
            ``unread_coroutines``, too.
    """

    def __init__(self, reader: AioReader, missing: Iterable[str]) -> None:
        """``missing``: what ``reader.layout`` lacks."""
        self._reader = reader
        self.torn: list[str] = []
        self.missing = set(missing)
        self.unread: list[int] = []
        self.unread_handlers: list[int] = []
        self.unread_coroutines: list[int] = []
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

    def contexts(
        self, pid: int, thread_pointers: Mapping[int, int], names: Mapping[int, str]
    ) -> tuple[Context, ...]:
        """As ``AioReader.contexts``."""
        found = self.one(partial(self._reader.contexts, pid, thread_pointers, names))
        self.dark = [pid] if found is None else self._reader.dark(pid, thread_pointers)
        return tuple(found or ())

    def bottom_halves(self, contexts: Iterable[Context]) -> tuple[BottomHalf, ...]:
        """As ``AioReader.bottom_halves``, of each context."""
        return self._each(contexts, self._reader.bottom_halves, self.unread)

    def handlers(self, contexts: Iterable[Context]) -> tuple[Handler, ...]:
        """As ``AioReader.handlers``, of each context."""
        return self._each(contexts, self._reader.handlers, self.unread_handlers)

    def scheduled(self, contexts: Iterable[Context]) -> tuple[Coroutine, ...]:
        """As ``AioReader.scheduled_coroutines``, of each context."""
        return self._each(contexts, self._reader.scheduled_coroutines, self.unread_coroutines)

    def _each(
        self, contexts: Iterable[Context], read: Callable[[int], list[T]], unread: list[int]
    ) -> tuple[T, ...]:
        found: list[T] = []
        for context in contexts:
            items = self.one(partial(read, context.address))
            if items is None:
                unread.append(context.address)
            found += items or ()
        return tuple(found)
