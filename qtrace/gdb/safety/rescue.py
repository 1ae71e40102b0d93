"""Keeps alive the threads that had met a breakpoint when gdb died, before it could deal with that.

Such a thread is stopped with SIGTRAP on its way to it; or it has lost its processor on the way to
that stop, which on a busy machine lasts longer than gdb takes to die; or, where gdb had come
further, it is stopped with its program counter one byte into an instruction. When gdb is gone the
kernel lets it go on like that, which is QEMU's end. Nobody can take the signal away: it is dropped
only if the process ignores SIGTRAP by the time the thread wakes up. Nor may anybody else trace the
thread before that.

So it is held back from running: it may use one processor only, and there a thread of ours spins
with a real-time priority. When gdb is gone, some idle thread of QEMU's is made to let the process
ignore SIGTRAP, and the one that is held back is traced, so that it stops before its first
instruction, and gets its program counter back. All of it takes some milliseconds, and nothing of
it is done to a process whose gdb is well. It needs a second processor and the right to real-time
priorities.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from qtrace.gdb.safety.trap_action import Helper
from qtrace.machine import ptrace
from qtrace.machine.stat_file import EXIT_CODE, SIGNAL, STATE, stat_fields
from qtrace.machine.thread_files import system_call

# The kernel stops a spinning thread of a real-time priority after 0.95 s.
START_LIMIT_S, SEARCH_LIMIT_S = 0.1, 0.5
# The threads held back wait for a processor like all others.
LIMIT_S = 2.0
GONE = (OSError, TimeoutError)


@dataclass(frozen=True)
class Breakpoint:
    """What was at an address before.

    Attributes:
        original: the byte.
        pushes: the register that an instruction of one byte pushes: a thread that has passed it
            is at the next byte, too.
    """

    original: bytes
    pushes: str | None = None


@dataclass(frozen=True)
class Held:
    """A thread that is held back: where it may run otherwise, and whether SIGTRAP awaits it."""

    processors: set[int]
    doomed: bool


class Rescue:
    """To be made early, as it starts a thread; used in one thread, the one that traces."""

    def __init__(
        self, pid: int, memory: int, code: Mapping[int, Breakpoint], processors: set[int]
    ) -> None:
        """
        Args:
            memory: /proc/PID/mem, open for writing.
            code: has gdb's addresses.
            processors: all that may be used; this thread has one of them (``priority.hurry``).
        """
        self._pid, self._memory, self._code = pid, memory, code
        self._held: dict[int, Held] = {}
        self._spinner = Spinner(processors)

    def hold_back(self) -> None:
        """Look for threads at a breakpoint, gdb still tracing them, and keep them from running."""
        for name in _tasks(self._pid):
            tid = int(name)
            with suppress(OSError, ValueError):
                if tid not in self._held and (doomed := self._has_met_one(tid)) is not None:
                    self._hold(tid, doomed)

    def bring_back(self) -> list[int]:
        """gdb is gone: give back to each its program counter. Returns the threads."""
        if not self._held:
            return []
        helper = None
        traced = []
        try:
            if any(held.doomed for held in self._held.values()):
                helper = self._find_helper(time.monotonic() + SEARCH_LIMIT_S)
            for tid in self._held:
                with suppress(OSError):
                    ptrace.ptrace(ptrace.SEIZE, tid)
                    traced.append(tid)
                    ptrace.ptrace(ptrace.INTERRUPT, tid)
        finally:
            self._spinner.stop()
        brought = [tid for tid in traced if self._put_back(tid)]
        for tid, held in self._held.items():
            with suppress(OSError):
                os.sched_setaffinity(tid, held.processors)
        if helper is not None:
            helper.leave()
        return brought

    def _has_met_one(self, tid: int) -> bool | None:
        """Whether SIGTRAP awaits a thread that is behind a breakpoint's byte; None for others."""
        with open(f"/proc/{self._pid}/task/{tid}/stat", errors="replace") as file:
            fields = stat_fields(file.read())
        state, pending, awaits = fields[STATE], int(fields[SIGNAL]), int(fields[EXIT_CODE])
        if pending & 1 << (signal.SIGTRAP - 1):
            return True
        if state != "t":
            return None
        with open(f"/proc/{self._pid}/task/{tid}/syscall") as file:
            call = system_call(file.read())
        behind = call is not None and call.number == -1 and call.pc - 1 in self._code
        return awaits == signal.SIGTRAP if behind else None

    def _hold(self, tid: int, doomed: bool) -> None:
        processors = os.sched_getaffinity(tid)
        if self._spinner.start(processors):
            os.sched_setaffinity(tid, {self._spinner.processor})
            self._held[tid] = Held(processors, doomed)

    def _find_helper(self, deadline: float) -> Helper | None:
        """A thread that waits in a system call, and has made one for us."""
        for name in _tasks(self._pid):
            tid = int(name)
            if tid in self._held or time.monotonic() > deadline:
                continue
            with suppress(*GONE), ExitStack() as stack:
                helper = Helper(tid, self._memory, self._spinner.others)
                stack.callback(helper.leave)
                helper.stop()
                if helper.usable:
                    helper.ignore_trap()
                    stack.pop_all()
                    return helper
        return None

    def _put_back(self, tid: int) -> bool:
        try:
            ptrace.wait_stop(tid, LIMIT_S)
            registers = ptrace.get_registers(tid)
            address = registers["rip"] - 1
            if back := self._is_inside(address, registers, self._held[tid].doomed):
                ptrace.set_registers(tid, {**registers, "rip": address})
            ptrace.ptrace(ptrace.DETACH, tid)
            return back
        except GONE:
            return False

    def _is_inside(self, address: int, registers: dict[str, int], doomed: bool) -> bool:
        """Whether a thread behind ``address`` has not yet executed what was there."""
        breakpoint = self._code.get(address)
        if breakpoint is None:
            return False
        if doomed or breakpoint.pushes is None:
            return True
        pushed = os.pread(self._memory, 8, registers["rsp"])
        return int.from_bytes(pushed, "little") != registers[breakpoint.pushes]


class Spinner:
    """Keeps one processor busy with a priority above the target's, when told to.

    Attributes:
        processor: which.
        others: those that are left to all others.
    """

    processor: int
    others: set[int]

    def __init__(self, processors: set[int]) -> None:
        """``processors`` are all that there are to choose from."""
        self._processors = processors
        self._libc = ctypes.CDLL(None)
        self._lock = ctypes.create_string_buffer(64)
        self._libc.pthread_spin_init(self._lock, 0)
        self._wanted, self._there = threading.Event(), threading.Event()
        threading.Thread(target=self._spin, daemon=True).start()

    def start(self, processors: set[int]) -> bool:
        """Whether it keeps one busy, if possible one of these; always the same one."""
        if self._wanted.is_set():
            return True
        # gdb and this thread need one, too.
        free = self._processors - os.sched_getaffinity(0)
        if not free or os.sched_getscheduler(0) != os.SCHED_RR:
            return False
        self.processor = max(free & processors or free)
        self.others = self._processors - {self.processor}
        self._libc.pthread_spin_lock(self._lock)
        self._wanted.set()
        return self._there.wait(START_LIMIT_S)

    def stop(self) -> None:
        """Let others have it again."""
        if self._wanted.is_set():
            self._libc.pthread_spin_unlock(self._lock)

    def _spin(self) -> None:
        self._wanted.wait()
        os.sched_setaffinity(0, {self.processor})
        self._there.set()
        # Called by ctypes, which lets other threads of Python run meanwhile.
        self._libc.pthread_spin_lock(self._lock)


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
