"""Tells that gdb is dying before the kernel lets go of what it traces.

A robust mutex in shared memory: gdb's main thread, which is the tracer, holds it, and the watchdog
waits for it. When gdb is killed the kernel gives the mutex away first (exit_mm_release() in
kernel/fork.c), then frees gdb's memory, which takes some milliseconds, and detaches from the
traced threads only after that (exit_notify() in kernel/exit.c). A pidfd becomes readable when all
of it is over: by then a thread that was stopped at a breakpoint has met it again, and died.

gdb's own Python runs this too: the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

PTHREAD_PROCESS_SHARED = 1
PTHREAD_MUTEX_ROBUST = 1
SIZE = 4096
_libc = ctypes.CDLL(None)


class Lifeline:
    """The mutex, in memory that is shared by its file descriptor."""

    def __init__(self, fd: int) -> None:
        """``fd`` comes from ``create``."""
        self._mapped = mmap.mmap(fd, SIZE)
        self._mutex = (ctypes.c_char * SIZE).from_buffer(self._mapped)

    @staticmethod
    def create() -> int:
        """A mutex that nobody holds. Returns its file descriptor, to be inherited."""
        fd = os.memfd_create("qtrace-lifeline")
        os.ftruncate(fd, SIZE)
        attributes = ctypes.create_string_buffer(64)
        _libc.pthread_mutexattr_init(attributes)
        _libc.pthread_mutexattr_setpshared(attributes, PTHREAD_PROCESS_SHARED)
        _libc.pthread_mutexattr_setrobust(attributes, PTHREAD_MUTEX_ROBUST)
        _libc.pthread_mutex_init(Lifeline(fd)._mutex, attributes)
        return fd

    def hold(self) -> None:
        """For the rest of this thread's life, or until ``release``."""
        _libc.pthread_mutex_lock(self._mutex)

    def release(self) -> None:
        """Nothing is left that would have to be put back."""
        _libc.pthread_mutex_unlock(self._mutex)

    def wait(self) -> bool:
        """Wait until it is not held any more: whether that is because its holder is dying."""
        result: int = _libc.pthread_mutex_lock(self._mutex)
        return result == errno.EOWNERDEAD
