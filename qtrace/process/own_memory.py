"""A QEMU's memory without what others bring page by page, as they may its guest's.

A page of a file comes when its file system brings it, one that userfaultfd serves (postcopy) when
whoever has that descriptor does: whoever reads a page that a guest waits for in vain waits with it,
and cannot be killed.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import suppress

from qtrace.errors import NoSuchProcess, PermissionMissing
from qtrace.machine.memory import Memory
from qtrace.process.live_source import LiveSource
from qtrace.process.look_source import LookSource
from qtrace.process.maps import KeptMaps

# A look is over in less, and what was mapped since the last one is seen by the next.
KEPT_S = 0.2
SERVER = "anon_inode:[userfaultfd]"
# In a word of /proc/PID/pagemap: the page is there, or on this host's swap.
THERE = 0b11 << 62


def own_memory(source: LookSource) -> Memory:
    """That of a live process; all there is of a core, where every page has come.

    Raises NoSuchProcess, PermissionMissing.
    """
    live = isinstance(source, LiveSource)
    return OwnMemory(source.pid, source.memory) if live else source.memory


class OwnMemory:
    """For whoever follows words that may be anything; nothing is read of what lies in a file, but
    of those that there is code of, nor, while somebody serves pages, of pages that are not there.
    """

    def __init__(self, pid: int, memory: Memory) -> None:
        """As it is mapped now, and then each time. Raises NoSuchProcess, PermissionMissing."""
        self._pid, self._memory = pid, memory
        self._kept = KeptMaps(pid)
        self._maps = b""
        self._files: list[tuple[int, int]] = []
        self._is_served = False
        self._refresh()

    def read(self, address: int, size: int) -> bytes:
        """As ``Memory.read``; nothing where a byte of it lies in a file, or is still to come."""
        if time.monotonic() - self._read_at >= KEPT_S:
            # Of one that is gone, or may no longer be seen, nothing is read in any case.
            with suppress(NoSuchProcess, PermissionMissing):
                self._refresh()
        if any(start < address + size and address < end for start, end in self._files):
            return b""
        if self._is_served and not self._is_there(address, size):
            return b""
        return self._memory.read(address, size)

    def _refresh(self) -> None:
        self._read_at = time.monotonic()
        maps = self._kept.read()
        if maps is self._maps:
            return
        self._maps = maps
        mappings = self._kept.mappings()
        modules = {mapping.key for mapping in mappings if mapping.executable}
        files = [m for m in mappings if m.inode and m.key not in modules]
        self._files = [(mapping.start, mapping.end) for mapping in files]
        self._is_served = _has_server(self._pid)

    def _is_there(self, address: int, size: int) -> bool:
        """Whether each of these pages can be read without asking for it; False where that is not
        known."""
        first, last = address // mmap.PAGESIZE, (address + size - 1) // mmap.PAGESIZE
        try:
            with open(f"/proc/{self._pid}/pagemap", "rb", 0) as file:
                raw = os.pread(file.fileno(), 8 * (last - first + 1), 8 * first)
        except (OSError, OverflowError):
            return False
        words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
        return len(words) == last - first + 1 and all(word & THERE for word in words)


def _has_server(pid: int) -> bool:
    """Whether anything of it may be served; True where that may not be seen."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if os.readlink(entry.path) == SERVER:
                        return True
    except OSError:
        return True
    return False
