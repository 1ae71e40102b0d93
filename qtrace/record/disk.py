"""What a recording takes of its disk, and whether there is room for going on."""

from __future__ import annotations

import os
from pathlib import Path

from qtrace.trace import chain

# What stays free, beside room for turning raw into rows.
RESERVE = 64 << 20


def size_of(path: Path) -> int:
    """Bytes on disk so far, of all files of a chain; 0 for a device or a pipe."""
    return sum(one.stat().st_size for one in chain.links(path) or [path] if one.is_file())


def has_room(path: Path, is_raw: bool) -> bool:
    """Whether the disk has the reserve, and room for the rows that a raw file becomes."""
    size = size_of(path)
    if not size:
        return True
    disk = os.statvfs(path.parent)
    needed = RESERVE + (2 * size if is_raw else 0)
    return disk.f_bavail * disk.f_frsize >= needed
