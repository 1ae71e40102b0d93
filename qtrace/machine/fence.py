"""The order in which words that are shared with the kernel are read and written."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from qtrace.machine.architecture import Architecture
from qtrace.machine.architectures import HOST

SEQUENTIAL = 5  # __ATOMIC_SEQ_CST
LIBRARY = "libatomic.so.1"

Fence = Callable[[], object]


def fence_of(architecture: Architecture) -> Fence | None:
    """What lets nothing that follows be done before what precedes; None where that is so anyway.

    The compiler's runtime library has it. Raises OSError where that is not installed.
    """
    if architecture.keeps_order:
        return None
    fence = ctypes.CDLL(LIBRARY).atomic_thread_fence
    fence.restype = None
    return lambda: fence(SEQUENTIAL)


def host_fence() -> Fence | None:
    """That of this machine. Raises OSError, see ``fence_of``."""
    return fence_of(HOST)
