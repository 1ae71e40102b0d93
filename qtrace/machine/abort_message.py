"""How a process ended that left a core: what abort() was told before it raised SIGABRT."""

from __future__ import annotations

import signal
import struct

from qtrace.machine.memory import Memory, read_word

# glibc: points to {unsigned int size; char text[]}, with what a failed assertion printed.
ABORT_MESSAGE = "__abort_msg"
LONGEST = 1000
# What a bug of its own, or who wants a core, ends a process with. (gcore's bear what a debugger
# stopped it by, as SIGTRAP.)
FATAL = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL,
                   signal.SIGSYS, signal.SIGQUIT})  # fmt: skip
# si_code of signals that a process sent: SI_USER, SI_QUEUE, SI_TKILL.
SENT = frozenset({0, -1, -6})


def read_abort_message(memory: Memory, variable: int) -> str:
    """The text that glibc keeps for those who read the core; empty when there is none.

    Args:
        variable: the address of ``ABORT_MESSAGE``.
    """
    address = read_word(memory, variable)
    head = memory.read(address, 4) if address else b""
    if not address or len(head) < 4:
        return ""
    (size,) = struct.unpack("<I", head)
    raw = memory.read(address + 4, min(size, LONGEST))
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
