"""QEMU's own lists, read over a ``Memory`` while QEMU may be changing them.

Nothing is locked, so each list is read until two readings in a row agree and every node is
what it must be (its own context, sane flags, back pointers). What will not settle raises
``Torn``: it is never shown as truth.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from qtrace.knowledge import IDLE, PENDING
from qtrace.machine.memory import Memory
from qtrace.qemu.aio.consistent_lists import ChangingMemory, Inconsistent, Torn
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.aio.model import (
    JOB_STATUSES,
    JOB_TYPES,
    BottomHalf,
    Context,
    Coroutine,
    Handler,
    Job,
)

# As deep as aio_bh_poll() can be nested.
MAX_SLICES = 64

# GSource (glib/gmain.h, unchanged since 2.0): what an AioContext begins with.
SOURCE_FUNCS, SOURCE_NAME = 0x10, 0x50
IOTHREAD_SOURCE = "IO {} aio-context"
# pthread_mutex_t.__data.__owner (glibc x86-64).
MUTEX_OWNER = 8


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
        self._memory = ChangingMemory(memory)
        self.layout = layout

    # Contexts

    def main(self) -> int:
        """qemu_aio_context, 0 before QEMU has made it."""
        self._memory.forget()
        return self._memory.peek(self._fact("main_variable")) or 0

    def iohandler(self) -> int:
        """iohandler_ctx, 0 before QEMU has made it."""
        self._memory.forget()
        return self._memory.peek(self._fact("iohandler_variable")) or 0

    def is_context(self, ctx: int) -> bool:
        """Whether this is an AioContext: its GSource has the same functions as the main one's."""
        return bool(self._is_like(ctx, self.main()))

    def _is_like(self, ctx: int, main: int) -> bool | None:
        """None where it cannot be read."""
        wanted = self._memory.peek(main + SOURCE_FUNCS) if main else None
        functions = self._memory.peek(ctx + SOURCE_FUNCS)
        return None if None in (wanted, functions) else functions == wanted

    def contexts(
        self, pid: int, thread_pointers: Mapping[int, int], names: Mapping[int, str] | None = None
    ) -> list[Context]:
        """The main loop's two contexts, and those that threads have as their own.

        Args:
            pid: the main thread's tid.
            thread_pointers: fs_base by tid (``qtrace.machine.thread_pointer``), as far as known.
            names: thread names by tid, as far as known.

        Raises ``Torn`` when the main loop's cannot be read; the threads of which that is true
        of their own are ``dark``.
        """
        self._memory.forget()
        found: dict[int, Context] = {}
        for name, variable in (("main", "main_variable"), ("iohandler", "iohandler_variable")):
            address = getattr(self.layout, variable)
            ctx = self._memory.peek(address) if address else 0
            if ctx is None:
                raise Torn("AioContexts")
            if ctx:
                found[ctx] = Context(ctx, name, pid)
        main = next((c.address for c in found.values() if c.name == "main"), 0)
        for tid, pointer in thread_pointers.items():
            ctx = self._own(pointer, main)
            if ctx and ctx not in found:
                thread = (names or {}).get(tid, "")
                by_thread = thread[3:] if thread.startswith("IO ") else str(tid)
                found[ctx] = Context(ctx, f"iothread:{self.iothread_id(ctx) or by_thread}", tid)
        return list(found.values())

    def dark(self, pid: int, thread_pointers: Mapping[int, int]) -> list[int]:
        """The threads but the main one of which it cannot be read whether they have a context."""
        variable = self.layout.main_variable
        main = (self._memory.peek(variable) or 0) if variable else 0
        others = [(tid, pointer) for tid, pointer in thread_pointers.items() if tid != pid]
        return [tid for tid, pointer in others if self._own(pointer, main) is None]

    def _own(self, thread_pointer: int, main: int) -> int | None:
        """A thread's own context, 0 when it has none, None where that cannot be read."""
        offset = self.layout.context_tls
        ctx = self._memory.peek(thread_pointer + offset) if offset else 0
        if ctx and self.layout.iothread_ctx:
            ctx = self._memory.peek(ctx + self.layout.iothread_ctx)
        like = self._is_like(ctx, main) if ctx else False
        return None if None in (ctx, like) else ctx if like else 0

    def iothread_id(self, ctx: int) -> str:
        """The IOThread's id, by which its GSource is named (1f14c9147c); empty before that."""
        name = self._memory.string(self._memory.peek(ctx + SOURCE_NAME) or 0)
        before, after = IOTHREAD_SOURCE.split("{}")
        if name.startswith(before) and name.endswith(after):
            return name[len(before) : len(name) - len(after)]
        return ""

    # What waits in a context

    def bottom_halves(self, ctx: int) -> list[BottomHalf]:
        """Everything queued in a context: open slices first, then the list, as it would run."""
        return self._memory.settled(f"bottom halves of {ctx:#x}", lambda: self._bottom_halves(ctx))

    def _bottom_halves(self, ctx: int) -> list[BottomHalf]:
        layout = self.layout
        follow = self._fact("bh_next")
        head = ctx + self._fact("ctx_bh_list")
        # The list before the slices: it is emptied into a new slice, never the other way.
        waiting = [
            self._bottom_half(node, ctx, False)
            for node in self._memory.chain(self._memory.word(head), follow)
        ]
        taken: list[BottomHalf] = []
        if layout.ctx_bh_slice_list is not None:
            slices = list(
                self._memory.chain(self._memory.word(ctx + layout.ctx_bh_slice_list), 8, MAX_SLICES)
            )
            for one in slices:
                # BHListSlice {bh_list; next} lies on the stack of a running aio_bh_poll().
                for node in self._memory.chain(self._memory.word(one), follow):
                    taken.append(self._bottom_half(node, ctx, True))
        both = taken + waiting
        if len({half.address for half in both}) != len(both):
            raise Inconsistent
        return both

    def _bottom_half(self, address: int, ctx: int, in_slice: bool) -> BottomHalf:
        flags_at = self._fact("bh_flags")
        raw = self._memory.bytes(address, flags_at + 4)
        (owner,) = struct.unpack_from("<Q", raw, 0)
        (flags,) = struct.unpack_from("<I", raw, flags_at)
        # PENDING is set before it is queued, and cleared after it is taken off.
        if owner != ctx or not flags & PENDING or flags >= 2 * IDLE:
            raise Inconsistent

        def word(offset: int | None) -> int | None:
            return None if offset is None else int(struct.unpack_from("<Q", raw, offset)[0])

        layout = self.layout
        cb = word(layout.bh_cb)
        if cb == 0:
            raise Inconsistent
        name = self._memory.constant(word(layout.bh_name) or 0)
        return BottomHalf(address, ctx, name, cb, word(layout.bh_opaque), flags, in_slice)

    def handlers(self, ctx: int) -> list[Handler]:
        """The fd handlers of a context, deleted ones that are not freed yet included."""
        return self._memory.settled(f"fd handlers of {ctx:#x}", lambda: self._handlers(ctx))

    def _handlers(self, ctx: int) -> list[Handler]:
        layout = self.layout
        head, follow = ctx + self._fact("ctx_aio_handlers"), self._fact("handler_next")
        found = []
        for node in self._memory.linked(head, follow):
            fd, events = struct.unpack("<iH", self._memory.bytes(node, 6))
            if not -1 <= fd < 1 << 30:
                raise Inconsistent

            def word(offset: int | None, node: int = node) -> int | None:
                return None if offset is None else self._memory.word(node + offset)

            deleted = word(layout.handler_deleted)
            found.append(
                Handler(
                    node, ctx, fd, events, word(layout.handler_io_read),
                    word(layout.handler_io_write), word(layout.handler_opaque),
                    None if deleted is None else bool(deleted),
                )
            )  # fmt: skip
        return found

    def scheduled_coroutines(self, ctx: int) -> list[Coroutine]:
        """Coroutines that aio_co_schedule() put there: a co_schedule_bh_cb will enter them."""
        head = ctx + self._fact("ctx_scheduled_coroutines")
        follow = self._fact("co_scheduled_next")
        return self._memory.settled(
            f"scheduled coroutines of {ctx:#x}",
            lambda: [
                self._coroutine(co) for co in self._memory.chain(self._memory.word(head), follow)
            ],
        )

    def coroutine(self, address: int) -> Coroutine:
        """One coroutine."""
        return self._memory.settled(f"coroutine {address:#x}", lambda: self._coroutine(address))

    def _coroutine(self, address: int) -> Coroutine:
        layout = self.layout
        # Coroutine {entry; entry_arg; caller; ...} (include/qemu/coroutine_int.h).
        entry, argument = struct.unpack("<QQ", self._memory.bytes(address, 16))
        caller = None if layout.co_caller is None else self._memory.word(address + layout.co_caller)
        ctx = None if layout.co_ctx is None else self._memory.word(address + layout.co_ctx)
        return Coroutine(address, entry, argument, caller, ctx)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        return self._memory.settled("jobs", self._jobs)

    def _jobs(self) -> list[Job]:
        layout = self.layout
        return [
            Job(
                address=job,
                id=self._memory.string(self._memory.word(job)),
                kind=self._job_type(job),
                status=self._enum(job, layout.job_status, JOB_STATUSES),
                co=None if layout.job_co is None else self._memory.word(job + layout.job_co),
            )
            for job in self._memory.linked(self._fact("jobs"), self._fact("job_next"))
        ]

    def _job_type(self, job: int) -> str:
        if self.layout.job_driver is None:
            return ""
        driver = self._memory.word(job + self.layout.job_driver)
        return self._enum(driver, self.layout.driver_type, JOB_TYPES)

    def _enum(self, address: int, offset: int | None, names: tuple[str, ...]) -> str:
        if offset is None:
            return ""
        (value,) = struct.unpack("<I", self._memory.bytes(address + offset, 4))
        return names[value] if value < len(names) else f"#{value}"

    # Locks

    def bql_holder(self) -> int:
        """Tid of the thread that holds the BQL, as its mutex tells; 0 for none."""
        self._memory.forget()
        mutex = self._fact("bql")
        if not mutex:
            return 0
        raw = self._memory.read(mutex, MUTEX_OWNER + 4)
        if len(raw) < MUTEX_OWNER + 4:
            raise Torn("BQL")
        locked, _count, owner = struct.unpack("<III", raw)
        return int(owner) if locked else 0

    def rcu_readers(self, thread_pointers: Mapping[int, int]) -> list[int]:
        """The threads that a grace period waits for: that read under RCU, and began to before it
        did (rcu_gp_ongoing() in util/rcu.c). One that cannot be read is left out.

        Args:
            thread_pointers: as of ``contexts``.
        """
        self._memory.forget()
        offset, period = self._fact("rcu_reader_tls"), self._memory.peek(self._fact("rcu_gp_ctr"))
        read = {tid: self._memory.peek(at + offset) for tid, at in thread_pointers.items()}
        return [tid for tid, ctr in read.items() if ctr and ctr != period]

    def _fact(self, name: str) -> int:
        value = getattr(self.layout, name)
        if value is None:
            raise Missing(name)
        return int(value)
