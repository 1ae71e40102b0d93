"""Where stacks lie: anonymous memory above an inaccessible page, from /proc/PID/maps.

The standard library only: gdb runs this code too.
"""

from __future__ import annotations

import re

from qtrace.machine.memory import PAGE

# What may be written right above an inaccessible anonymous page.
GUARDED = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ---p 0+ 00:00 0 *\n\2-([0-9a-f]+) rw-p 0+ 00:00 0 ")
# Few mappings are inaccessible: they are found quicker so than by an expression.
INACCESSIBLE = b" ---p "


def guarded_in(maps: bytes) -> list[tuple[int, int]]:
    """From each such page's start to the end of what may be written; ``maps`` is the file."""
    found = []
    at = maps.find(INACCESSIBLE)
    while at >= 0:
        match = GUARDED.match(maps, maps.rfind(b"\n", 0, at) + 1)
        if match:
            start, guard_end, end = (int(address, 16) for address in match.groups())
            if guard_end - start == PAGE:
                found.append((start, end))
        at = maps.find(INACCESSIBLE, at + 1)
    return found
