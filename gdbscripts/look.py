"""One look at the QEMU that gdb has before it, as ``qtrace.target.aio.model`` describes it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeVar

import gdb

from qtrace.gdbscripts.debug_info import with_debug_info
from qtrace.gdbscripts.stacks import Stack, Stacks
from qtrace.gdbscripts.target import PROOF, GdbMemory, GdbProgram, file_code, is_core, register
from qtrace.roles import Role, role_of_functions, role_of_name
from qtrace.target.aio.calibration import calibrate
from qtrace.target.aio.coroutine import guard_of_thread
from qtrace.target.aio.ending import ABORT_MESSAGE, FATAL, SENT, read_abort_message
from qtrace.target.aio.gather import Gathering
from qtrace.target.aio.layout import Layout
from qtrace.target.aio.model import Context, Ending, Look, Thread, has_main_loop
from qtrace.target.aio.settled import Torn
from qtrace.target.aio.walk import AioReader, Missing
from qtrace.target.arch_x86_64 import SYSCALL_INSTRUCTION
from qtrace.target.memory import read_word
from qtrace.target.syscalls import RUNNING_GUEST, restarted, sleeps, syscall_name

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
        self.stacks = Stacks(self.reader, next((g for g in guards if g is not None), None))

    @property
    def pid(self) -> int:
        return int(self._inferior.pid)

    @cached_property
    def contexts(self) -> list[Context]:
        """Raises ``Torn`` when the main loop's cannot be read."""
        return self.reader.contexts(self.pid, self.thread_pointers, self._names())

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
        return [f"thread {tid}" for tid in self.reader.dark(self.pid, self.thread_pointers)]

    def threads(self, contexts: Iterable[Context]) -> list[Thread]:
        """All threads with their stacks, in the order in which gdb numbers them."""
        owners = {context.tid for context in contexts}
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
            found.append(
                Thread(
                    tid, name, self._role(tid, name, stack, owners),
                    _system_call(self.memory, stack), stack.names, stack.whole, stack.polls, at,
                    kernel=kernel,
                )
            )  # fmt: skip
        return found

    def current_coroutine(self, tid: int) -> int:
        """The coroutine that a thread is in, 0 for none."""
        offset, pointer = self.layout.coroutine_tls, self.thread_pointers.get(tid)
        current = read_word(self.memory, pointer + offset) if pointer and offset else None
        if not current:
            return 0
        try:
            # Outside any coroutine the variable holds the thread's own leader: nobody entered it.
            return current if self.reader.coroutine(current).caller else 0
        except (Missing, Torn):
            return 0

    def look(self) -> Look:
        """Everything at once; what cannot be read is named."""
        reader, lists = self.reader, Gathering(self.reader, self.layout.missing())
        contexts = lists.contexts(self.pid, self.thread_pointers, self._names())
        jobs = tuple(lists.one(reader.jobs) or ())
        frames = {job.co: self.stacks.of_coroutine(job.co) for job in jobs if job.co}
        return Look(
            time_ns=time.monotonic_ns(),
            contexts=contexts,
            bottom_halves=lists.bottom_halves(contexts),
            handlers=lists.each(contexts, reader.handlers),
            scheduled=lists.each(contexts, reader.scheduled_coroutines),
            jobs=jobs,
            threads=tuple(self.threads(contexts)),
            bql_holder=lists.one(reader.bql_holder),
            ending=ending(),
            main_loop=has_main_loop(self._program()),
            torn=tuple(lists.torn),
            missing=tuple(sorted(lists.missing)),
            unread=tuple(lists.unread),
            dark=tuple(lists.dark),
            coroutine_frames={co: stack.names for co, stack in frames.items() if stack},
        )

    def _program(self) -> str:
        # Of a live process gdb may have /proc/PID/exe.
        return os.path.basename(os.path.realpath(str(gdb.current_progspace().filename)))

    def _names(self) -> dict[int, str]:
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

    def _role(self, tid: int, name: str, stack: Stack, owners: set[int]) -> Role:
        if tid == self.pid:
            return "main"
        if tid in owners:
            return "iothread"
        functions = [frame.split("+0x")[0] for frame in stack.names]
        return role_of_name(name) or role_of_functions(functions) or "other"


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


def _system_call(memory: GdbMemory, stack: Stack) -> str:
    """The system call that the selected thread sleeps in, empty when it runs."""
    frame = gdb.newest_frame()
    number, pc = register(frame, "orig_rax"), register(frame, "rip")
    if number is None or pc is None or number >> 63:
        return ""
    with file_code():
        code = memory.read(pc - 2, 2)
    if code != SYSCALL_INSTRUCTION or not sleeps(register(frame, "rax") or 0):
        return ""
    name = restarted(syscall_name(number, register(frame, "rsi") or 0), stack.names)
    return "" if name == RUNNING_GUEST else name
