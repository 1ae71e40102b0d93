"""What every recorder takes at a site: registers and a copy of the stack."""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.machine.architectures import HOST

# How much is copied of what may be the QEMUBH.
QEMUBH_BYTES = 64
# The registers behind which that much is copied: one of the callee-saved ones points to the
# QEMUBH when a callback is entered; the others are the first two arguments.
CANDIDATES = (*HOST.callee_saved, *HOST.arguments[:2])
PC = HOST.pc


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit of a site, as the kernel or gdb copied it.

    Attributes:
        registers: by DWARF number; the pc is the site itself.
        candidates: ``QEMUBH_BYTES`` behind each register of ``CANDIDATES``.
        stack: the stack's bytes from ``stack_base`` on.
    """

    time_ns: int
    tid: int
    thread: str
    registers: dict[int, int]
    candidates: bytes
    stack_base: int
    stack: bytes

    @property
    def address(self) -> int:
        return self.registers[PC]

    def behind(self, register: int) -> bytes:
        """What a register of ``CANDIDATES`` points at; zeros where it points nowhere."""
        start = CANDIDATES.index(register) * QEMUBH_BYTES
        return self.candidates[start : start + QEMUBH_BYTES]
