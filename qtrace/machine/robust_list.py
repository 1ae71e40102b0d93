"""Where a thread's list of robust futexes begins, as the kernel knows it (get_robust_list(2)).

It takes no more leave than reading the thread's memory does, and stops nothing.
"""

from __future__ import annotations

import ctypes

from qtrace.machine.arch_x86_64 import GET_ROBUST_LIST

_libc = ctypes.CDLL(None)


def robust_list(tid: int) -> int:
    """The address of its head, 0 where there is none or it may not be known."""
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    failed = _libc.syscall(GET_ROBUST_LIST, tid, ctypes.byref(head), ctypes.byref(size))
    return 0 if failed else head.value or 0
