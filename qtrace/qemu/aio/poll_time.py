"""How long an AioContext's loop polls before it sleeps (poll-max-ns of IOThreads)."""

from __future__ import annotations

import struct

from qtrace.machine.memory import Memory
from qtrace.qemu.aio.flow import Argument, argument, follow
from qtrace.qemu.aio.instructions import Disassembly

# Of aio_context_set_poll_params(ctx, max_ns, grow, shrink, ...), at most.
INSTRUCTIONS = 60


def longest_poll_offset(program: Disassembly) -> int | None:
    """Where an AioContext has it: where the function that sets it stores its second argument.

    None where the code does not show that.
    """
    for step in follow(program, "aio_context_set_poll_params", INSTRUCTIONS):
        place = step.address(0)
        if step.instruction.mnemonic != "mov" or place is None or place.root != Argument(0):
            continue
        if step.value(1) == argument(1):
            return place.offset
    return None


def longest_poll_ns(memory: Memory, ctx: int, offset: int) -> int | None:
    """Of one context; None where it cannot be read."""
    raw = memory.read(ctx + offset, 8)
    return int(struct.unpack("<q", raw)[0]) if len(raw) == 8 else None
