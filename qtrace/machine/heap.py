"""The memory of this very process."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Let the system have what was needed for a moment: a search of all of a QEMU's code takes
    tens of MB, which the C library keeps for later otherwise."""
    gc.collect()
    # glibc's alone.
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
