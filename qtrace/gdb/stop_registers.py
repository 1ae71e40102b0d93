"""What gdb copies at a stop, as an eBPF probe would."""

from __future__ import annotations

from typing import Any

from qtrace.gdb.channel import Message
from qtrace.machine.arch_x86_64 import REGISTER_NAMES, RSP
from qtrace.process.hit import CANDIDATES, QEMUBH_BYTES, Hit

# For the script inside gdb (gdbscripts.stops.capture): the registers in the order wanted, those
# that may point to the QEMUBH, and how much of the stack: as much as probes/event.h has room for,
# the rest of the first page and eight more.
CAPTURE: dict[str, Any] = {
    "registers": REGISTER_NAMES,
    "candidates": [REGISTER_NAMES[register] for register in CANDIDATES],
    "candidate_bytes": QEMUBH_BYTES,
    "stack_pages": 9,
}


def hit_of(message: Message) -> Hit:
    """A message that has a capture."""
    facts = message.facts
    registers = dict(enumerate(facts["registers"]))
    size = len(CANDIDATES) * QEMUBH_BYTES
    return Hit(
        time_ns=facts["time_ns"],
        tid=facts["tid"],
        thread=facts["thread"],
        registers=registers,
        candidates=message.raw[:size],
        stack_base=registers[RSP],
        stack=message.raw[size:],
    )
