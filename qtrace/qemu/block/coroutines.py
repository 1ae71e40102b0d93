"""Every coroutine of a QEMU, found through its stack: there is no list of them.

A stack is one anonymous mapping whose lowest page is a guard (qemu_alloc_stack() in
util/oslib-posix.c), and the pointer to its Coroutine lies near its upper end, in the frame of
coroutine_trampoline(): the structure that points back to the stack proves it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from qtrace.machine.memory import PAGE, Memory, Pages
from qtrace.qemu.aio.layout import Layout

# COROUTINE_STACK_SIZE (util/coroutine-ucontext.c), and the guard below it.
STACK_SIZE = 1 << 20
WHOLE = STACK_SIZE + PAGE
# The first frames of a coroutine lie in so many bytes.
TOP = 512
# CoroutineUContext {Coroutine base; void *stack; size_t stack_size; ...; sigjmp_buf env}.
STACK_BEFORE_ENV = 16
# Coroutine {entry; entry_arg; caller; ...} (include/qemu/coroutine_int.h).
_BEGIN = struct.Struct("<3Q")
_STACK = struct.Struct("<2Q")


@dataclass(frozen=True)
class Found:
    """A coroutine, its first function and that one's argument, who entered it (0: it sleeps), and
    its stack's ends."""

    address: int
    entry: int
    argument: int
    caller: int
    low: int
    high: int


class CoroutineStacks:
    """Finds the coroutines of one QEMU, again and again: stacks stay with their coroutine.

    Attributes:
        unread: how many stacks could not be read the last time: a core may leave them out.
    """

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory = Pages(memory)
        self._env = layout.co_env
        # The coroutine of each stack, and where its pointer was found, from the upper end.
        self._known: dict[int, int] = {}
        self._places: list[int] = []
        self.unread = 0

    def find(self, guarded: Iterable[tuple[int, int]]) -> list[Found]:
        """The coroutines whose stacks are among the mappings.

        Args:
            guarded: anonymous memory that begins with an inaccessible page, from that page's
                start to the end of what may be written. (The kernel joins neighbours: the stack
                is the lowest part.)
        """
        if self._env is None:
            return []
        self._memory.forget()
        self.unread = 0
        found = []
        for start, end in guarded:
            if end - start < WHOLE:
                continue
            co = self._coroutine_of(start)
            if co:
                raw = self._memory.read(co, _BEGIN.size)
                if len(raw) == _BEGIN.size:
                    entry, argument, caller = _BEGIN.unpack(raw)
                    found.append(Found(co, entry, argument, caller, start + PAGE, start + WHOLE))
        return found

    def _coroutine_of(self, start: int) -> int:
        """The Coroutine whose stack lies there, 0 where none does: a thread's, or its memory."""
        known = self._known.get(start, 0)
        if known and self._owns(known, start):
            return known
        high = start + WHOLE
        for place in self._places:
            co = self._memory.word(high - place) or 0
            if co and self._owns(co, start):
                self._known[start] = co
                return co
        raw = self._memory.read(high - TOP, TOP)
        self.unread += not raw
        for number in range(len(raw) // 8):
            (co,) = struct.unpack_from("<Q", raw, 8 * number)
            if co and not co % 16 and not co >> 47 and self._owns(co, start):
                self._known[start] = co
                self._places.append(TOP - 8 * number)
                return int(co)
        return 0

    def _owns(self, co: int, start: int) -> bool:
        assert self._env is not None
        raw = self._memory.read(co + self._env - STACK_BEFORE_ENV, _STACK.size)
        return len(raw) == _STACK.size and _STACK.unpack(raw) == (start, WHOLE)
