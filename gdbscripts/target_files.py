"""Which of the target's files gdb really has: a chroot's or a container's libraries, and those of a
core from elsewhere, have the same paths as others on this machine."""

from __future__ import annotations

import os
import re

import gdb

from qtrace.gdbscripts.gdb_target import GdbMemory, is_core
from qtrace.process.build_ids import build_id_at

# Start, end, size, offset, permissions (gdb 14) and path.
MAPPING = re.compile(
    r"^\s*(0x\w+)\s+(0x\w+)\s+0x\w+\s+(0x\w+)\s+(?:[r-][w-][x-][ps-]\s+)?(/.*?)\s*$", re.MULTILINE
)
# As ``Files.nameless`` begins.
NAMELESS = re.compile(r"^[^@]*@0x")


class Files:
    """The mapped files, by the build ids that stand in the target's memory.

    Attributes:
        met: the files that stacks led through and that gdb has not, or has another build of.
    """

    def __init__(self) -> None:
        self.met: set[str] = set()
        self._mapped = _mapped()
        self._foreign = _foreign(self._mapped)

    def foreign(self, pc: int) -> str:
        """The mapped file that a pc lies in, if gdb does not have just that one; else empty."""
        path = self._path(pc)
        if path not in self._foreign:
            return ""
        self.met.add(path)
        return path

    def nameless(self, pc: int) -> str:
        """A pc in a function that has no symbol: ``qemu-system-x86_64@0x55...``; ``?@0x...`` in
        none of the files."""
        return f"{os.path.basename(self._path(pc)) or '?'}@{pc:#x}"

    def _path(self, pc: int) -> str:
        return next((path for start, end, path in self._mapped if start <= pc < end), "")

    def complaint(self) -> str:
        """What to do about those that were met; empty when there are none."""
        if not self.met:
            return ""
        remedy = f"set sysroot /proc/{gdb.selected_inferior().pid}/root"
        if is_core():
            # What it has read of the core so far does not change with the setting.
            remedy = "set sysroot DIR (where its files lie), then core-file with its path again"
        files = ", ".join(sorted(self.met))
        return f"gdb does not have the files that were mapped ({files}): {remedy}"


def _mapped() -> list[tuple[int, int, str]]:
    """Start, end and path of what is mapped from files; the part that begins a file comes first."""
    try:
        listed = gdb.execute("info proc mappings", to_string=True)
    except gdb.error:
        # A core without the list of its files.
        return []
    parts = [(int(o, 16), int(s, 16), int(e, 16), p) for s, e, o, p in MAPPING.findall(listed)]
    return [(start, end, path) for _offset, start, end, path in sorted(parts)]


def _foreign(mapped: list[tuple[int, int, str]]) -> set[str]:
    """The files whose build ids in memory are none of those that gdb has."""
    here = {objfile.build_id for objfile in gdb.objfiles()}
    beginnings = {path: start for start, _end, path in reversed(mapped)}
    memory = GdbMemory()
    ids = {path: build_id_at(memory, start) for path, start in beginnings.items()}
    return {path for path, found in ids.items() if found and found not in here}


_files: list[Files] = []


def begin() -> None:
    """Look at the files anew: others may have been mapped, or gdb been told where they are."""
    _files[:] = [Files()]


def files() -> Files:
    """The files as the running command found them."""
    if not _files:
        begin()
    return _files[0]
