"""What a thread sleeps on in futex(2)."""

from __future__ import annotations

import struct

from qtrace.machine.memory import Memory
from qtrace.qemu.aio.model import Futex

FUTEX = "futex"
# The word; in a pthread_mutex_t (glibc x86-64) the owner's tid follows after the count.
_WORD_AND_OWNER = struct.Struct("<I4xI")


def read_futex(memory: Memory, blocked_in: str, arguments: tuple[int, ...]) -> Futex | None:
    """The futex that a thread sleeps on, as it is now; None for one in another system call."""
    if blocked_in != FUTEX or not arguments:
        return None
    raw = memory.read(arguments[0], _WORD_AND_OWNER.size)
    if len(raw) < _WORD_AND_OWNER.size:
        return Futex(arguments[0], None, None)
    return Futex(arguments[0], *_WORD_AND_OWNER.unpack(raw))
