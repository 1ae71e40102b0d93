"""Waiting for descriptors: by poll(2), as select(2) knows only the first 1,024 of a process.

Whoever looks at a QEMU with many threads has several files open of each.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Any


def readable(descriptors: Iterable[Any], timeout_s: float) -> list[Any]:
    """Those that have something to read, or have come to their end, after at most so long.

    Args:
        descriptors: numbers, or what has one (``fileno()``).
    """
    by_number = {fd if isinstance(fd, int) else fd.fileno(): fd for fd in descriptors}
    waiting = select.poll()
    for number in by_number:
        waiting.register(number, select.POLLIN)
    return [by_number[number] for number, _events in waiting.poll(max(timeout_s, 0) * 1000)]
