"""What a recording takes of its disk, and whether there is room for going on."""

from __future__ import annotations

import os
from pathlib import Path

# What stays free, beside room for turning raw into rows.
RESERVE = 64 << 20


def size_of(path: Path) -> int:
    """Bytes on disk so far; 0 for a device or a pipe."""
    return path.stat().st_size if path.is_file() else 0


def has_room(path: Path, is_raw: bool) -> bool:
    """Whether the disk has the reserve, and room for the rows that a raw file becomes."""
    if not path.is_file():
        return True
    disk = os.statvfs(path.parent)
    needed = RESERVE + (2 * size_of(path) if is_raw else 0)
    return disk.f_bavail * disk.f_frsize >= needed
