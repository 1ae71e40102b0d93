"""QEMU's own lists, read over a ``Memory`` while QEMU may be changing them.

Nothing is locked, so each list is read until two readings in a row agree and every node is
what it must be (its own context, sane flags, back pointers). What will not settle raises
``Torn``: it is never shown as truth.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from qtrace.target.aio.layout import Layout
from qtrace.target.aio.model import (
    JOB_STATUSES,
    JOB_TYPES,
    BottomHalf,
    Context,
    Coroutine,
    Handler,
    Job,
)
from qtrace.target.memory import Memory, Pages

# Longer lists are taken for loops. A QEMU has a handful of bottom halves and a few hundred fds.
MAX_NODES = 4096
MAX_SLICES = 64
TRIES = 100

# GSource (glib/gmain.h, unchanged since 2.0): what an AioContext begins with.
SOURCE_FUNCS, SOURCE_NAME = 0x10, 0x50
IOTHREAD_SOURCE = "IO {} aio-context"
# pthread_mutex_t.__data.__owner (glibc x86-64).
MUTEX_OWNER = 8

T = TypeVar("T")


class Torn(Exception):
    """What was read changed under the reader, again and again; ``what`` names it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Missing(Exception):
    """The binary does not show where this lies; ``fact`` names the missing ``Layout`` field."""

    def __init__(self, fact: str) -> None:
        super().__init__(fact)
        self.fact = fact


class AioReader:
    """Reads the lists of one QEMU.

    Methods raise ``Missing`` when the layout lacks what they need, and ``Torn``.
    """

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory = Pages(memory)
        self.layout = layout
        self._strings: dict[int, str] = {}

    # Contexts

    def main(self) -> int:
        """qemu_aio_context, 0 before QEMU has made it."""
        self._memory.forget()
        return self._word(self._fact("main_variable"))

    def iohandler(self) -> int:
        """iohandler_ctx, 0 before QEMU has made it."""
        self._memory.forget()
        return self._word(self._fact("iohandler_variable"))

    def is_context(self, ctx: int) -> bool:
        """Whether this is an AioContext: its GSource has the same functions as the main one's."""
        return self._is_like(ctx, self.main())

    def _is_like(self, ctx: int, main: int) -> bool:
        functions = self._memory.word(main + SOURCE_FUNCS) if main else None
        return bool(functions) and self._memory.word(ctx + SOURCE_FUNCS) == functions

    def contexts(
        self, pid: int, thread_pointers: Mapping[int, int], names: Mapping[int, str] | None = None
    ) -> list[Context]:
        """The main loop's two contexts, and those that threads have as their own.

        Args:
            pid: the main thread's tid.
            thread_pointers: fs_base by tid (``qtrace.target.aio.tls``), as far as known.
            names: thread names by tid, as far as known.
        """
        self._memory.forget()
        found: dict[int, Context] = {}
        for name, variable in (("main", "main_variable"), ("iohandler", "iohandler_variable")):
            address = getattr(self.layout, variable)
            ctx = self._memory.word(address) if address else None
            if ctx:
                found[ctx] = Context(ctx, name, pid)
        main = next((c.address for c in found.values() if c.name == "main"), 0)
        offset = self.layout.context_tls
        for tid, pointer in thread_pointers.items():
            ctx = self._memory.word(pointer + offset) if offset else None
            if ctx and ctx not in found and self._is_like(ctx, main):
                thread = (names or {}).get(tid, "")
                by_thread = thread[3:] if thread.startswith("IO ") else str(tid)
                found[ctx] = Context(ctx, f"iothread:{self.iothread_id(ctx) or by_thread}", tid)
        return list(found.values())

    def iothread_id(self, ctx: int) -> str:
        """The IOThread's id, by which its GSource is named (1f14c9147c); empty before that."""
        name = self.string(self._memory.word(ctx + SOURCE_NAME) or 0)
        before, after = IOTHREAD_SOURCE.split("{}")
        if name.startswith(before) and name.endswith(after):
            return name[len(before) : len(name) - len(after)]
        return ""

    # What waits in a context

    def bottom_halves(self, ctx: int) -> list[BottomHalf]:
        """Everything queued in a context: open slices first, then the list, as it would run."""
        return self._settled(f"bottom halves of {ctx:#x}", lambda: self._bottom_halves(ctx))

    def _bottom_halves(self, ctx: int) -> list[BottomHalf]:
        layout = self.layout
        follow = self._fact("bh_next")
        head = ctx + self._fact("ctx_bh_list")
        # The list before the slices: it is emptied into a new slice, never the other way.
        waiting = [
            self._bottom_half(node, ctx, False) for node in self._chain(self._word(head), follow)
        ]
        taken: list[BottomHalf] = []
        if layout.ctx_bh_slice_list is not None:
            slices = list(self._chain(self._word(ctx + layout.ctx_bh_slice_list), 8, MAX_SLICES))
            for one in slices:
                # BHListSlice {bh_list; next} lies on the stack of a running aio_bh_poll().
                for node in self._chain(self._word(one), follow):
                    taken.append(self._bottom_half(node, ctx, True))
        both = taken + waiting
        if len({half.address for half in both}) != len(both):
            raise _Inconsistent
        return both

    def _bottom_half(self, address: int, ctx: int, in_slice: bool) -> BottomHalf:
        flags_at = self._fact("bh_flags")
        raw = self._bytes(address, flags_at + 4)
        (owner,) = struct.unpack_from("<Q", raw, 0)
        (flags,) = struct.unpack_from("<I", raw, flags_at)
        # PENDING is set before it is queued, and cleared after it is taken off.
        if owner != ctx or not flags & 1 or flags > 31:
            raise _Inconsistent

        def word(offset: int | None) -> int:
            return 0 if offset is None else int(struct.unpack_from("<Q", raw, offset)[0])

        layout = self.layout
        cb = word(layout.bh_cb)
        if layout.bh_cb is not None and not cb:
            raise _Inconsistent
        name = self.string(word(layout.bh_name)) if layout.bh_name is not None else ""
        return BottomHalf(address, ctx, name, cb, word(layout.bh_opaque), flags, in_slice)

    def handlers(self, ctx: int) -> list[Handler]:
        """The fd handlers of a context, deleted ones that are not freed yet included."""
        return self._settled(f"fd handlers of {ctx:#x}", lambda: self._handlers(ctx))

    def _handlers(self, ctx: int) -> list[Handler]:
        layout = self.layout
        head, follow = ctx + self._fact("ctx_aio_handlers"), self._fact("handler_next")
        found = []
        for node in self._linked(head, follow):
            fd, events = struct.unpack("<iH", self._bytes(node, 6))
            if not -1 <= fd < 1 << 30:
                raise _Inconsistent

            def word(offset: int | None, node: int = node) -> int:
                return 0 if offset is None else self._word(node + offset)

            found.append(
                Handler(
                    node, ctx, fd, events, word(layout.handler_io_read),
                    word(layout.handler_io_write), word(layout.handler_opaque),
                    bool(word(layout.handler_deleted)),
                )
            )  # fmt: skip
        return found

    def scheduled_coroutines(self, ctx: int) -> list[Coroutine]:
        """Coroutines that aio_co_schedule() put there: a co_schedule_bh_cb will enter them."""
        head = ctx + self._fact("ctx_scheduled_coroutines")
        follow = self._fact("co_scheduled_next")
        return self._settled(
            f"scheduled coroutines of {ctx:#x}",
            lambda: [self._coroutine(co) for co in self._chain(self._word(head), follow)],
        )

    def coroutine(self, address: int) -> Coroutine:
        """One coroutine."""
        return self._settled(f"coroutine {address:#x}", lambda: self._coroutine(address))

    def _coroutine(self, address: int) -> Coroutine:
        layout = self.layout
        # Coroutine {entry; entry_arg; caller; ...} (include/qemu/coroutine_int.h).
        entry, argument = struct.unpack("<QQ", self._bytes(address, 16))
        caller = None if layout.co_caller is None else self._word(address + layout.co_caller)
        ctx = None if layout.co_ctx is None else self._word(address + layout.co_ctx)
        return Coroutine(address, entry, argument, caller, ctx)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        return self._settled("jobs", self._jobs)

    def _jobs(self) -> list[Job]:
        layout = self.layout
        return [
            Job(
                address=job,
                id=self.string(self._word(job)),
                kind=self._job_type(job),
                status=self._enum(job, layout.job_status, JOB_STATUSES),
                co=0 if layout.job_co is None else self._word(job + layout.job_co),
            )
            for job in self._linked(self._fact("jobs"), self._fact("job_next"))
        ]

    def _job_type(self, job: int) -> str:
        if self.layout.job_driver is None:
            return ""
        driver = self._word(job + self.layout.job_driver)
        return self._enum(driver, self.layout.driver_type, JOB_TYPES)

    def _enum(self, address: int, offset: int | None, names: tuple[str, ...]) -> str:
        if offset is None:
            return ""
        (value,) = struct.unpack("<I", self._bytes(address + offset, 4))
        return names[value] if value < len(names) else f"#{value}"

    # Locks

    def bql_holder(self) -> int:
        """Tid of the thread that holds the BQL, as its mutex tells; 0 for none."""
        self._memory.forget()
        raw = self._memory.read(self._fact("bql"), MUTEX_OWNER + 4)
        if len(raw) < MUTEX_OWNER + 4:
            raise Torn("BQL")
        locked, _count, owner = struct.unpack("<III", raw)
        return int(owner) if locked else 0

    def waiters(self) -> int:
        """How many threads sit in AIO_WAIT_WHILE (global_aio_wait.num_waiters)."""
        self._memory.forget()
        raw = self._memory.read(self._fact("waiters"), 4)
        return int(struct.unpack("<I", raw)[0]) if len(raw) == 4 else 0

    # Reading

    def string(self, address: int) -> str:
        """A C string as far as it is printable; empty when there is none."""
        if address not in self._strings:
            raw = self._memory.read(address, 128) if address else b""
            text = raw.split(b"\0", 1)[0].decode("ascii", "replace")
            if not text.isprintable():
                return ""
            # Names lie in constant data; a heap string may be another one next time.
            if len(self._strings) > MAX_NODES:
                self._strings.clear()
            self._strings[address] = text
        return self._strings[address]

    def _fact(self, name: str) -> int:
        value = getattr(self.layout, name)
        if value is None:
            raise Missing(name)
        return int(value)

    def _word(self, address: int) -> int:
        value = self._memory.word(address)
        if value is None:
            raise _Inconsistent
        return value

    def _bytes(self, address: int, size: int) -> bytes:
        raw = self._memory.read(address, size)
        if len(raw) != size:
            raise _Inconsistent
        return raw

    def _chain(self, node: int, follow: int, limit: int = MAX_NODES) -> Iterator[int]:
        """A singly linked list from its first node on."""
        for _ in range(limit):
            if not node:
                return
            yield node
            node = self._word(node + follow)
        raise _Inconsistent

    def _linked(self, head: int, follow: int) -> Iterator[int]:
        """A QLIST: each node points back to the pointer that leads to it."""
        place = head
        for _ in range(MAX_NODES):
            node = self._word(place)
            if not node:
                return
            if self._word(node + follow + 8) != place:
                raise _Inconsistent
            yield node
            place = node + follow
        raise _Inconsistent

    def _settled(self, what: str, read: Callable[[], T]) -> T:
        before: T | None = None
        for _ in range(TRIES):
            self._memory.forget()
            try:
                now = read()
            except _Inconsistent:
                before = None
                continue
            if before is not None and now == before:
                return now
            before = now
        raise Torn(what)


class _Inconsistent(Exception):
    """A reading that cannot be true: read again."""
