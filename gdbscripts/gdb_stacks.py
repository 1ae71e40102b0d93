"""Call chains as gdb unwinds them: of threads, and of the coroutines on and beside them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import gdb

from qtrace.gdbscripts.coroutine_stack import presented
from qtrace.gdbscripts.gdb_target import GdbMemory, register
from qtrace.gdbscripts.static_names import static_names
from qtrace.gdbscripts.target_files import files
from qtrace.machine.arch_x86_64 import X86_64, follows_a_call
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.jump_buffer import saved_registers
from qtrace.qemu.aio.model import Poll
from qtrace.qemu.aio.walk import AioReader, Missing

MAX_FRAMES = 256
# Longest chain of coroutines that entered one another (a block graph is less deep).
MAX_ENTERED = 64
POLL = "aio_poll"
# Bytes of code at its start, at most, that still have ctx in the argument's register.
PROLOGUE, FIRST_ARGUMENT = 32, "rdi"


@dataclass(frozen=True)
class Frame:
    """One frame: run-time pc, and ``name+0xoffset``, or ``file@pc`` where there is no symbol.

    ``ctx`` is the context that a frame of aio_poll() polls (0 when it cannot be told), None for
    any other frame. ``source`` is ``file:line`` where debug info tells it.
    """

    pc: int
    name: str
    ctx: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Stack:
    """Frames, leaf first. ``whole``: it reaches the thread's first function."""

    frames: tuple[Frame, ...]
    whole: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(frame.name for frame in self.frames)

    @property
    def polls(self) -> tuple[Poll, ...]:
        return tuple(Poll(f.ctx, n) for n, f in enumerate(self.frames) if f.ctx is not None)


class Stacks:
    """Reads the stacks of one stopped QEMU."""

    def __init__(self, reader: AioReader, guard: int | None) -> None:
        """``guard`` is the process's pointer guard, without which coroutines stay dark."""
        self._reader = reader
        self._guard = guard
        self._memory = GdbMemory()

    def of_thread(self, current: int) -> Stack:
        """The selected thread's stack.

        Args:
            current: the coroutine that the thread is in (its thread-local variable), 0 for none.

        A coroutine has a stack of its own; what entered it stands where that was left, and the
        chain goes on there.
        """
        stack, ended = self._walk(gdb.newest_frame())
        frames = list(stack.frames)
        for _ in range(MAX_ENTERED):
            entered_by = self._caller(current) if ended and current else 0
            registers = self._registers(entered_by) if entered_by else None
            if not registers:
                break
            with presented(registers) as frame:
                stack, ended = self._walk(frame)
            frames += stack.frames
            current = entered_by
        return Stack(tuple(frames), stack.whole)

    def of_coroutine(self, co: int) -> Stack | None:
        """A sleeping coroutine's own stack, None when its registers cannot be read."""
        registers = self._registers(co)
        if not registers:
            return None
        with presented(registers) as frame:
            stack, ended = self._walk(frame)
        return Stack(stack.frames, ended) if stack.frames else None

    def _caller(self, co: int) -> int:
        try:
            return self._reader.coroutine(co).caller or 0
        except (Missing, Torn):
            return 0

    def _registers(self, co: int) -> dict[str, int] | None:
        env = self._reader.layout.co_env
        if env is None or self._guard is None:
            return None
        return saved_registers(self._memory, co, env, self._guard, X86_64)

    def _walk(self, frame: gdb.Frame | None) -> tuple[Stack, bool]:
        """The frames from one on, and whether they end at a coroutine's first function."""
        found: list[Frame] = []
        younger = gdb.INLINE_FRAME
        while frame is not None and len(found) < MAX_FRAMES:
            pc = frame.pc()
            if files().foreign(pc):
                # Neither its names nor its rules are those of what is mapped.
                return Stack((*found, Frame(pc, files().nameless(pc))), False), False
            # Of neighbours of these types, the older one's pc is a return address.
            returned_to = younger == frame.type() == gdb.NORMAL_FRAME
            if returned_to and self._is_trampoline(pc):
                return Stack(tuple(found), False), True
            found.append(self._frame(frame, pc))
            younger = frame.type()
            reason = frame.unwind_stop_reason()
            try:
                frame = frame.older()
            except gdb.error:
                # Memory that a core does not have.
                return Stack(tuple(found), False), False
            if frame is None:
                ended = reason in (gdb.FRAME_UNWIND_NO_REASON, gdb.FRAME_UNWIND_OUTERMOST)
                return Stack(tuple(found), ended), False
        return Stack(tuple(found), False), False

    def _is_trampoline(self, pc: int) -> bool:
        """Whether makecontext() lets a coroutine's first function return there.

        No call precedes the place, in libc. (None precedes the return addresses that TCG's
        generated code pushes either, but that is no file's.)
        """
        in_library = gdb.current_progspace().solib_name(pc) is not None
        return in_library and not follows_a_call(self._memory.read(pc - 7, 7))

    def _frame(self, frame: gdb.Frame, pc: int) -> Frame:
        name = frame.name()
        place = frame.find_sal()
        source = f"{place.symtab.filename}:{place.line}" if place.symtab else ""
        ctx = self._polled(frame, pc) if name == POLL else None
        return Frame(pc, _name(frame, name, pc), ctx, source)

    def _polled(self, frame: gdb.Frame, pc: int) -> int:
        """The ctx argument of a frame of aio_poll()."""
        kept = self._reader.layout.poll_register
        # Until its prologue has kept it, it is where the caller put it.
        entered = frame.level() == 0 and pc - (symbol_start(pc) or 0) < PROLOGUE
        candidates = [register(frame, FIRST_ARGUMENT)] if entered else []
        candidates += [register(frame, kept)] if kept else []
        # Without debug info, or optimised out, the variable cannot be read.
        with suppress(gdb.error, ValueError):
            candidates.append(int(frame.read_var("ctx")))
        return next((ctx for ctx in candidates if ctx and self._reader.is_context(ctx)), 0)


def _name(frame: gdb.Frame, name: str | None, pc: int) -> str:
    if name is None:
        # A return address may be the next function's.
        static, offset = static_names().around(pc - (frame.level() > 0))
        offset += frame.level() > 0
        return f"{static}+{offset:#x}" if static and offset else static or files().nameless(pc)
    if frame.type() == gdb.INLINE_FRAME:
        return name
    function = frame.function()
    start = int(function.value().address) if function is not None else symbol_start(pc)
    return f"{name}+{pc - start:#x}" if start is not None and pc > start else name


def symbol_start(pc: int) -> int | None:
    """Where the function around an address starts, by the symbol table."""
    symbol, offset = symbol_at(pc)
    return pc - offset if symbol else None


def symbol_at(address: int) -> tuple[str, int]:
    """The symbol around an address and the offset in it; empty without one."""
    if files().foreign(address):
        return "", 0
    words = gdb.execute(f"info symbol {address:#x}", to_string=True).partition(" in section")
    if not words[1]:
        return "", 0
    name, _, offset = words[0].rpartition(" + ")
    return (name, int(offset)) if name else (words[0], 0)


def code_name(address: int | None) -> str:
    """A function pointer for people: its symbol, else the address; ``?`` for one not known."""
    if address is None:
        return "?"
    if not address:
        return "-"
    symbol, offset = symbol_at(address)
    if symbol and not offset:
        return symbol
    return static_names().names.get(address) or f"{address:#x}"
