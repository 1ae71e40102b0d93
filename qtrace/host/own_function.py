"""A function of ours in a file that nobody else has: to try a probe on.

A probe on a library would have the kernel lock the memory map of each process that has it, and wait
for one that is stuck.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

from qtrace.machine.architectures import HOST

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_FAILED = ctypes.c_void_p(-1).value


class OwnFunction:
    """It does nothing; it is at the beginning of its file.

    Attributes:
        path: what to open for that file.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._code = os.memfd_create("qtrace-own-function")
        os.write(self._code, HOST.nothing.ljust(mmap.PAGESIZE, b"\0"))
        self.path = f"/proc/self/fd/{self._code}"
        # Not writable: such a mapping takes no uprobe. Python's own tells no address of one.
        mapped = _libc.mmap(
            None, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC,
            mmap.MAP_PRIVATE, self._code, ctypes.c_long(0),
        )  # fmt: skip
        if mapped == _FAILED:
            number = ctypes.get_errno()
            os.close(self._code)
            raise OSError(number, os.strerror(number))
        self._at = int(mapped)
        self._function = ctypes.CFUNCTYPE(None)(self._at)

    def call(self) -> None:
        """In this thread."""
        self._function()

    def call_in_thread(self) -> None:
        """In another one."""
        thread = threading.Thread(target=self._function)
        thread.start()
        thread.join()

    def close(self) -> None:
        _libc.munmap(ctypes.c_void_p(self._at), ctypes.c_size_t(mmap.PAGESIZE))
        os.close(self._code)
