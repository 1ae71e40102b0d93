"""What lies in a file is not read: its page may never come."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from qtrace.machine.memory import ProcessMemory
from qtrace.process.own_memory import OwnMemory


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
