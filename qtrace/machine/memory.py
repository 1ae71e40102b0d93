"""Reading bytes of a target's memory. Standard library only: gdb runs this code too."""

from __future__ import annotations

import os
import struct
from typing import Protocol

PAGE = 4096


class Memory(Protocol):
    """Whatever has the target's bytes: a live process, a core file, a debugger."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes, or fewer where the mapping ends; empty where there is none."""


class ProcessMemory:
    """The memory of a live process by /proc/PID/mem, without stopping it."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)

    def read(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, address)
        except (OSError, OverflowError):
            return b""


_WORD = struct.Struct("<Q")


class Pages:
    """A Memory that reads each page of another one once, until it is told to ``forget``.

    What lies close together (a stack, a list's nodes) costs one read.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pages: dict[int, bytes] = {}

    def forget(self) -> None:
        """From here on everything is read anew."""
        self._pages.clear()

    def read(self, address: int, size: int) -> bytes:
        start = address & -PAGE
        if address + size > start + PAGE:
            return self._memory.read(address, size)
        return self._page(start)[address - start : address - start + size]

    def word(self, address: int) -> int | None:
        """``read_word``, without a copy: a look takes hundreds of them."""
        start = address & -PAGE
        page = self._page(start)
        if address - start + 8 > len(page):
            return read_word(self._memory, address)
        return int(_WORD.unpack_from(page, address - start)[0])

    def _page(self, start: int) -> bytes:
        page = self._pages.get(start)
        if page is None:
            page = self._pages[start] = self._memory.read(start, PAGE)
        return page


def read_word(memory: Memory, address: int) -> int | None:
    """An 8-byte little-endian word, None where it cannot be read."""
    raw = memory.read(address, 8)
    return int(_WORD.unpack(raw)[0]) if len(raw) == 8 else None
