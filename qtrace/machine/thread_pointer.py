"""Each thread's thread pointer (fs_base) without stopping it, from glibc's struct pthread.

The structure points to itself twice (tcbhead_t.tcb and .self) and holds the thread's id, and a
little behind it the head of the thread's list of robust futexes, of which the kernel knows where
it lies.
"""

from __future__ import annotations

import ctypes
import struct

from qtrace.machine.architectures import HOST
from qtrace.machine.memory import Memory

SELF = 0x10
# struct pthread: `list` then `tid`, right after tcbhead_t (0x2c0 bytes since glibc 2.2x).
TID_FROM, TID_TO = 0x2C0, 0x310
# From `tid` to `robust_head`: pid_ununsed and robust_prev lie between them.
ROBUST_AFTER_TID = 16
ALIGNMENT = 64
GET_ROBUST_LIST = HOST.call_number("get_robust_list")
_libc = ctypes.CDLL(None)


def robust_list(tid: int) -> int:
    """Where a thread's list of robust futexes begins, as the kernel knows it; 0 where there is none
    or it may not be known.

    get_robust_list(2) takes no more leave than reading the thread's memory does, and stops nothing.
    """
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    failed = _libc.syscall(GET_ROBUST_LIST, tid, ctypes.byref(head), ctypes.byref(size))
    return 0 if failed else head.value or 0


def thread_pointer(memory: Memory, robust_list: int, tid: int) -> int | None:
    """fs_base of a thread; None where no struct pthread of it lies around its list.

    Args:
        robust_list: the head of the thread's robust list (get_robust_list(2)).
        tid: its id, as the process itself knows it.
    """
    at = robust_list - ROBUST_AFTER_TID
    first, last = (at - TID_FROM) & -ALIGNMENT, at - TID_TO
    return next(
        (p for p in range(first, last, -ALIGNMENT) if is_thread_pointer(memory, p, tid)), None
    )


def is_thread_pointer(memory: Memory, pointer: int, tid: int) -> bool:
    """Whether a struct pthread of this thread lies there (still)."""
    raw = memory.read(pointer, TID_TO)
    if not _points_to_itself(raw, pointer):
        return False
    # A look asks this of every thread: bytes.find() is quicker than word by word.
    wanted = struct.pack("<I", tid)
    at = raw.find(wanted, TID_FROM)
    while at % 4 and at > 0:
        at = raw.find(wanted, at + 1)
    return at > 0


def _points_to_itself(raw: bytes, pointer: int) -> bool:
    return (
        len(raw) == TID_TO
        and struct.unpack_from("<Q", raw, 0)[0] == pointer
        and struct.unpack_from("<Q", raw, SELF)[0] == pointer
    )
