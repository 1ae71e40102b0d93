"""What every recorder takes at a site: registers and a copy of the stack."""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.target.arch_x86_64 import RETURN_ADDRESS

# How much is copied of what may be the QEMUBH.
QEMUBH_BYTES = 64


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit of a site, as the kernel or gdb copied it.

    Attributes:
        registers: by DWARF number, ``RETURN_ADDRESS`` being the site itself.
        candidates: ``QEMUBH_BYTES`` behind each callee-saved register, one of which is the
            QEMUBH when a callback is entered.
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
        return self.registers[RETURN_ADDRESS]
