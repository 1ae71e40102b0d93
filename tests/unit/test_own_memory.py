"""What lies in a file, or is served by userfaultfd, is not read: its page may never come."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.machine.architectures import HOST
from qtrace.machine.memory import ProcessMemory
from qtrace.process import own_memory
from qtrace.process.own_memory import OwnMemory

# linux/userfaultfd.h
API, MISSING = 0xAA, 1
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00


def test_nothing_is_read_of_what_lies_in_a_file_as_a_guests_memory_may(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"x" * 2 * mmap.PAGESIZE)
    heap = ctypes.create_string_buffer(b"an object")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as ram:
        view = ctypes.c_char.from_buffer(ram)
        start = ctypes.addressof(view)
        plain = ProcessMemory(os.getpid())
        memory = OwnMemory(os.getpid(), plain)
        assert plain.read(start, 4) == b"xxxx"
        assert memory.read(start, 4) == memory.read(start - 4, 8) == b""
        assert memory.read(ctypes.addressof(heap), 9) == b"an object"
        del view


@contextmanager
def served(start: int, size: int) -> Iterator[None]:
    """Nobody brings the pages that are not there."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(HOST.call_number("userfaultfd"), os.O_CLOEXEC)
    if fd < 0:
        pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    try:
        fcntl.ioctl(fd, UFFDIO_API, struct.pack("=QQQ", API, 0, 0))
        fcntl.ioctl(fd, UFFDIO_REGISTER, struct.pack("=QQQQ", start, size, MISSING, 0))
        yield
    finally:
        os.close(fd)


def test_nothing_is_read_of_a_page_that_userfaultfd_has_to_bring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_memory, "KEPT_S", 0.0)
    heap = ctypes.create_string_buffer(b"an object")
    with mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        view = ctypes.c_char.from_buffer(ram)
        start = ctypes.addressof(view)
        ram[:4] = b"here"
        memory = OwnMemory(os.getpid(), ProcessMemory(os.getpid()))
        assert memory.read(start, 4) == b"here"
        assert memory.read(start + mmap.PAGESIZE, 4) == bytes(4)
        with served(start, 4 * mmap.PAGESIZE):
            assert memory.read(start, 4) == b"here"
            assert memory.read(start + 3 * mmap.PAGESIZE, 4) == b""
            assert memory.read(start + 2 * mmap.PAGESIZE - 2, 4) == b""
            assert memory.read(ctypes.addressof(heap), 9) == b"an object"
        del view
