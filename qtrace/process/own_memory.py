"""A QEMU's memory without what lies in files, as its guest's may.

A page of such a file comes when its file system brings it: whoever reads one that a guest waits
for in vain waits with it, and cannot be killed.
"""

from __future__ import annotations

from qtrace.machine.memory import Memory
from qtrace.process.live_source import LiveSource
from qtrace.process.look_source import LookSource
from qtrace.process.maps import read_maps


def own_memory(source: LookSource) -> Memory:
    """That of a live process; all there is of a core, where every page has come.

    Raises NoSuchProcess, PermissionMissing.
    """
    live = isinstance(source, LiveSource)
    return OwnMemory(source.pid, source.memory) if live else source.memory


class OwnMemory:
    """For whoever follows words that may be anything; nothing is read of what lies in a file, but
    of those that there is code of."""

    def __init__(self, pid: int, memory: Memory) -> None:
        """As it is mapped now. Raises NoSuchProcess, PermissionMissing."""
        self._memory = memory
        mappings = read_maps(pid)
        modules = {mapping.key for mapping in mappings if mapping.executable}
        files = [m for m in mappings if m.inode and m.key not in modules]
        self._files = [(mapping.start, mapping.end) for mapping in files]

    def read(self, address: int, size: int) -> bytes:
        """As ``Memory.read``; nothing where a byte of it lies in a file."""
        if any(start < address + size and address < end for start, end in self._files):
            return b""
        return self._memory.read(address, size)
