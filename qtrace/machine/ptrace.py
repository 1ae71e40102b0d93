"""ptrace(2): stopping threads for a moment, and their registers.

Made by hand, by ctypes: gdb's own Python and the watchdog run this, with the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time

from qtrace.machine.arch_x86_64 import PRSTATUS_REGISTERS

CONT, GETREGS, SETREGS, DETACH, SYSCALL, GETEVENTMSG = 7, 12, 13, 17, 24, 0x4201
SEIZE, INTERRUPT, LISTEN, GETSIGMASK, SETSIGMASK = 0x4206, 0x4207, 0x4208, 0x420A, 0x420B
TRACESYSGOOD = 1
# What a stop at a system call is told as.
SYSCALL_STOP = 0x85
ALL_THREADS = 0x40000000  # __WALL, which Python's os does not have
LOOK_EVERY_S = 0.00005

_LAYOUT = struct.Struct(f"{len(PRSTATUS_REGISTERS)}Q")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

Buffer = ctypes.Array[ctypes.c_char]


def ptrace(request: int, tid: int, address: int = 0, data: int | Buffer = 0) -> None:
    """Raises OSError: the thread is gone, or is not ours to change."""
    if _libc.ptrace(request, tid, address, data):
        raise OSError(ctypes.get_errno(), "ptrace")


def get_registers(tid: int) -> dict[str, int]:
    """Those of a stopped thread, by the names of PRSTATUS_REGISTERS."""
    buffer = ctypes.create_string_buffer(_LAYOUT.size)
    ptrace(GETREGS, tid, 0, buffer)
    return dict(zip(PRSTATUS_REGISTERS, _LAYOUT.unpack(buffer.raw)))  # noqa: B905 (3.10)


def set_registers(tid: int, values: dict[str, int]) -> None:
    """All at once."""
    packed = _LAYOUT.pack(*(values[name] for name in PRSTATUS_REGISTERS))
    ptrace(SETREGS, tid, 0, ctypes.create_string_buffer(packed, _LAYOUT.size))


def wait_stop(tid: int, limit_s: float) -> int:
    """Wait until a traced thread stops; its wait status.

    Raises:
        ChildProcessError: it has ended, or is not traced by this thread.
        TimeoutError: it does not stop.
    """
    deadline = time.monotonic() + limit_s
    while (status := has_stopped(tid)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(LOOK_EVERY_S)
    return status


def has_stopped(tid: int) -> int | None:
    """The wait status of a traced thread that has stopped, None while it has not.

    Raises ChildProcessError, see ``wait_stop``.
    """
    waited, status = os.waitpid(tid, os.WNOHANG | ALL_THREADS)
    if not waited:
        return None
    if not os.WIFSTOPPED(status):
        raise ChildProcessError
    return status


def let_go(tid: int, status: int) -> None:
    """Detach from a thread that has stopped: with the signal that stopped it, if one did.

    Raises OSError: it is gone.
    """
    ptrace(DETACH, tid, 0, 0 if status >> 16 else os.WSTOPSIG(status))
