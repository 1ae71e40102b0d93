"""One look at the QEMU that gdb has before it, as ``qtrace.qemu.aio.model`` describes it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TypeVar

import gdb

from qtrace.gdbscripts.debug_info_facts import with_debug_info
from qtrace.gdbscripts.gdb_stacks import Stack, Stacks
from qtrace.gdbscripts.gdb_target import PROOF, GdbMemory, GdbProgram, file_code, is_core, register
from qtrace.gdbscripts.target_files import files
from qtrace.machine.abort_message import ABORT_MESSAGE, FATAL, SENT, read_abort_message
from qtrace.machine.arch_x86_64 import SYSCALL_ARGUMENTS, SYSCALL_INSTRUCTION
from qtrace.machine.syscalls import RUNNING_GUEST, restarted, sleeps, syscall_name
from qtrace.qemu.aio.awake import Awake, awake, entered
from qtrace.qemu.aio.calibration import calibrate
from qtrace.qemu.aio.consistent_lists import Torn
from qtrace.qemu.aio.futex import read_futex
from qtrace.qemu.aio.gather import take_look
from qtrace.qemu.aio.jump_buffer import guard_of_thread
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.aio.model import Context, Ending, Look, Thread
from qtrace.qemu.aio.walk import AioReader
from qtrace.roles import Roles

T = TypeVar("T")

_layouts: dict[tuple[str, int | None], tuple[Layout, list[str]]] = {}


def layout() -> Layout:
    """The layout of the program, read from its code and its debug info once."""
    return _found()[0]


def disagreements() -> list[str]:
    """The facts on which code and debug info differ; debug info is used."""
    return _found()[1]


def _found() -> tuple[Layout, list[str]]:
    program = GdbProgram()
    key = (str(gdb.current_progspace().filename), program.address(PROOF))
    if key not in _layouts:
        _layouts[key] = with_debug_info(calibrate(program))
    return _layouts[key]


class Qemu:
    """Reads the stopped QEMU (or the core) that gdb has before it."""

    def __init__(self) -> None:
        self.memory = GdbMemory()
        self.layout = layout()
        self.reader = AioReader(self.memory, self.layout)
        self._inferior = gdb.selected_inferior()
        self.thread_pointers = self._thread_pointers()
        # The same in every thread, but a core may lack some.
        guards = (guard_of_thread(self.memory, at) for at in self.thread_pointers.values())
        self.guard = next((g for g in guards if g is not None), None)
        self.stacks = Stacks(self.reader, self.guard)

    @property
    def pid(self) -> int:
        return int(self._inferior.pid)

    @cached_property
    def contexts(self) -> list[Context]:
        """Raises ``Torn`` when the main loop's cannot be read, ``Missing`` when the code does not
        show where they are."""
        self.reader.main()
        return self.reader.contexts(self.pid, self.thread_pointers, self.present())

    def each(
        self, contexts: Iterable[Context], read: Callable[[int], list[T]]
    ) -> tuple[list[tuple[Context, T]], list[str]]:
        """What a method of the reader finds in each context, and where it cannot be read."""
        found: list[tuple[Context, T]] = []
        unread = []
        for context in contexts:
            try:
                found += [(context, item) for item in read(context.address)]
            except Torn:
                unread.append(f"`{context.label}`")
        return found, unread

    def dark(self) -> list[str]:
        """Where there may be a context more, which cannot be read."""
        if self.layout.context_tls is None:
            return ["the AioContexts of IOThreads, which the code of this QEMU does not show"]
        return [f"thread {tid}" for tid in self.reader.dark(self.pid, self.thread_pointers)]

    def threads(self, contexts: Iterable[Context]) -> list[Thread]:
        """All threads with their stacks, in the order in which gdb numbers them."""
        owners = {c.tid for c in contexts if c.name.startswith("iothread:")}
        roles = Roles(self.pid)
        roles.present(self.present())
        found = []
        for thread in self._by_number():
            thread.switch()
            tid = thread.ptid[1]
            frame = gdb.newest_frame()
            # Without a pc it is the kernel's worker: it runs no code of QEMU's.
            kernel = not frame.pc()
            nothing = Stack((), False)
            stack = nothing if kernel else self.stacks.of_thread(self.current_coroutine(tid))
            frame = gdb.newest_frame()
            at = register(frame, "rsp") or 0, register(frame, "rip") or 0
            name = thread.name or ""
            shown = tid in self.thread_pointers and self.layout.context_tls is not None
            owns = tid in owners or (False if shown else None)
            role = roles.role(tid, name, stack.names, whole=stack.whole, owns_context=owns)
            blocked_in, arguments = _system_call(self.memory, stack)
            found.append(
                Thread(
                    tid, name, role, blocked_in, stack.names,
                    stack.whole, stack.polls, at, kernel=kernel, arguments=arguments,
                    futex=read_futex(self.memory, blocked_in, arguments),
                )
            )  # fmt: skip
        return found

    def current_coroutine(self, tid: int) -> int:
        """The coroutine that a thread is in, 0 for none."""
        pointer = self.thread_pointers.get(tid)
        return next(iter(entered(self.memory, self.layout, pointer) if pointer else ()), 0)

    @cached_property
    def awake(self) -> Awake:
        return awake(self.memory, self.layout, self.thread_pointers)

    def stack_of(self, co: int) -> tuple[Stack | None, int | None]:
        """As ``coroutine``, with all that is known of the frames."""
        tid = self.awake.threads.get(co)
        caller = self.reader.coroutine(co).caller
        if tid is None and caller:
            tid = 0
        runs = co in self.awake.running or tid == 0 or caller is None
        return None if runs else self.stacks.of_coroutine(co), tid

    def coroutine(self, co: int) -> tuple[tuple[str, ...], int | None]:
        """As ``Shown.coroutine``."""
        stack, tid = self.stack_of(co)
        return stack.names if stack else (), tid

    def look(self) -> Look:
        """Everything at once; what cannot be read is named."""
        return take_look(self)

    def pointers(self) -> dict[int, int]:
        return self.thread_pointers

    def outer_tid(self, tid: int) -> int:
        return tid

    def ending(self) -> Ending | None:
        return ending()

    def differing(self) -> list[str]:
        return disagreements()

    def held(self, threads: Sequence[Thread]) -> str:
        """gdb holds it, and everybody knows."""
        return ""

    def absent(self) -> list[str]:
        return [f"gdb does not have {path}" for path in sorted(files().met)]

    @property
    def program(self) -> str:
        # Of a live process gdb may have /proc/PID/exe.
        return os.path.basename(os.path.realpath(str(gdb.current_progspace().filename)))

    def present(self) -> dict[int, str]:
        return {thread.ptid[1]: thread.name or "" for thread in self._inferior.threads()}

    def _by_number(self) -> list[gdb.InferiorThread]:
        return sorted(self._inferior.threads(), key=lambda thread: int(thread.num))

    def _thread_pointers(self) -> dict[int, int]:
        pointers = {}
        for thread in self._by_number():
            thread.switch()
            frame = gdb.newest_frame()
            pointer = register(frame, "fs_base")
            # A kernel's worker in the process (KVM's) has no pc, and its maker's registers.
            if pointer and frame.pc():
                pointers[thread.ptid[1]] = pointer
        return pointers


def ending() -> Ending | None:
    """The signal that a core was written for; None of a live process, or one that was copied."""
    if not is_core():
        return None
    # gdb puts the thread first that the signal hit.
    first = min(gdb.selected_inferior().threads(), key=lambda thread: int(thread.num))
    first.switch()
    try:
        info = gdb.parse_and_eval("$_siginfo")
        number, code = int(info["si_signo"]), int(info["si_code"])
        sender = int(info["_sifields"]["_kill"]["si_pid"]) if code in SENT else 0
    except gdb.error:
        return None
    if number not in FATAL:
        return None
    outside = sender if sender != gdb.selected_inferior().pid else 0
    variable = GdbProgram().address(ABORT_MESSAGE)
    message = read_abort_message(GdbMemory(), variable) if variable and not outside else ""
    return Ending(signal.Signals(number).name, first.ptid[1], outside, message)


def _system_call(memory: GdbMemory, stack: Stack) -> tuple[str, tuple[int, ...]]:
    """The system call that the selected thread sleeps in, empty when it runs, and its arguments."""
    frame = gdb.newest_frame()
    number, pc = register(frame, "orig_rax"), register(frame, "rip")
    if number is None or pc is None or number >> 63:
        return "", ()
    with file_code():
        code = b"" if files().foreign(pc) else memory.read(pc - 2, 2)
    arguments = tuple(register(frame, name) or 0 for name in SYSCALL_ARGUMENTS)
    # Code that cannot be read (a core without its libraries) cannot speak against the number.
    in_call = code in (SYSCALL_INSTRUCTION, b"")
    if not in_call or not sleeps(number, register(frame, "rax") or 0, arguments):
        return "", ()
    name = restarted(syscall_name(number, arguments[1]), stack.names)
    return "" if name == RUNNING_GUEST else name, arguments
