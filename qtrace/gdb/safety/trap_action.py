"""Lets a process ignore SIGTRAP for a moment: one of its idle threads makes that system call."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from contextlib import suppress

from qtrace.machine import ptrace
from qtrace.machine.arch_x86_64 import (
    RED_ZONE,
    RT_SIGACTION,
    SYSCALL_INSTRUCTION,
    is_in_system_call,
    restarted,
    system_call,
)

# It has a processor at once, where it may have a real-time priority.
LIMIT_S = 0.1
# struct kernel_sigaction: handler, flags, restorer, mask.
SIGACTION = struct.Struct("4Q")
IGNORE = SIGACTION.pack(signal.SIG_IGN, 0, 0, 0)
NO_SIGNALS, ALL_SIGNALS = bytes(8), b"\xff" * 8


class Helper:
    """A thread of the target that makes a system call for us, and goes on as if it had not."""

    def __init__(self, tid: int, memory: int, processors: set[int]) -> None:
        """``processors`` are those that it may use meanwhile. Raises OSError."""
        self._tid, self._memory = tid, memory
        self._action: bytes | None = None
        self._after: dict[str, int] | None = None
        self._processors = os.sched_getaffinity(tid)
        self._policy = os.sched_getscheduler(tid), os.sched_getparam(tid)
        # It must not wait behind our own spinning thread, nor behind anybody else.
        os.sched_setaffinity(tid, processors)
        with suppress(PermissionError):
            os.sched_setscheduler(tid, os.SCHED_RR, os.sched_param(1))

    def stop(self) -> None:
        """Raises OSError, TimeoutError."""
        ptrace.ptrace(ptrace.SEIZE, self._tid, 0, ptrace.TRACESYSGOOD)
        ptrace.ptrace(ptrace.INTERRUPT, self._tid)
        ptrace.wait_stop(self._tid, LIMIT_S)
        self._before = self._after = ptrace.get_registers(self._tid)

    @property
    def usable(self) -> bool:
        """Whether it waits in a system call, so that its instruction is there."""
        instruction = os.pread(self._memory, len(SYSCALL_INSTRUCTION), self._call)
        return is_in_system_call(self._before) and instruction == SYSCALL_INSTRUCTION

    def ignore_trap(self) -> None:
        """Let the process ignore SIGTRAP. Raises OSError, TimeoutError."""
        self._action = self._sigaction(IGNORE)

    def leave(self) -> None:
        """Undo all that, and let the thread go on."""
        with suppress(OSError, TimeoutError):
            if self._action is not None:
                self._sigaction(self._action)
        with suppress(OSError):
            if self._after is not None:
                ptrace.set_registers(self._tid, self._after)
                ptrace.ptrace(ptrace.DETACH, self._tid)
        with suppress(OSError):
            os.sched_setscheduler(self._tid, *self._policy)
            os.sched_setaffinity(self._tid, self._processors)

    @property
    def _call(self) -> int:
        return self._before["rip"] - len(SYSCALL_INSTRUCTION)

    def _sigaction(self, action: bytes) -> bytes:
        """rt_sigaction(2) for SIGTRAP; what it was before."""
        # Below the red zone: nobody's.
        new = self._before["rsp"] - RED_ZONE - 2 * SIGACTION.size
        old = new + SIGACTION.size
        os.pwrite(self._memory, action, new)
        arguments = (RT_SIGACTION, signal.SIGTRAP, new, old, len(NO_SIGNALS))
        # What was interrupted is to begin anew: its own result is lost.
        self._after = restarted(self._before)
        mask = ctypes.create_string_buffer(NO_SIGNALS, 8)
        ptrace.ptrace(ptrace.GETSIGMASK, self._tid, 8, mask)
        everything = ctypes.create_string_buffer(ALL_SIGNALS, 8)
        ptrace.ptrace(ptrace.SETSIGMASK, self._tid, 8, everything)
        try:
            calling = system_call(self._before, *arguments)
            ptrace.set_registers(self._tid, {**calling, "rip": self._call})
            for _ in ("entry", "exit"):
                self._to_system_call()
        finally:
            ptrace.ptrace(ptrace.SETSIGMASK, self._tid, 8, mask)
        return os.pread(self._memory, SIGACTION.size, old)

    def _to_system_call(self) -> None:
        status = 0
        while os.WSTOPSIG(status) != ptrace.SYSCALL_STOP:
            ptrace.ptrace(ptrace.SYSCALL, self._tid)
            status = ptrace.wait_stop(self._tid, LIMIT_S)
