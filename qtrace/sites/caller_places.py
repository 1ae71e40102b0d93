"""Where the return addresses around a probe lie, as C expressions for its program (``regs``).

Frames are found by the stack pointer or, as in Ubuntu's builds, by rbp.
"""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.binary.cfi import Rule
from qtrace.machine.arch_x86_64 import RBP, RETURN_ADDRESS, RSP

WORD = 8


@dataclass(frozen=True, slots=True)
class Place:
    """An address: a C expression and bytes from there."""

    base: str
    offset: int = 0

    def plus(self, offset: int) -> Place:
        return Place(self.base, self.offset + offset)

    @property
    def in_c(self) -> str:
        return f"{self.base}{self.offset:+d}" if self.offset else self.base


@dataclass(frozen=True, slots=True)
class Registers:
    """What the two registers hold that frames are found by."""

    rsp: Place = Place("regs->sp")
    rbp: Place = Place("regs->bp")

    def caller(self, rule: Rule | None) -> tuple[Place, Registers] | None:
        """Where the return address of a frame lies, and the registers of its caller; None where
        the rule (of the frame's pc) does not tell."""
        if rule is None or rule.cfa_register not in (RSP, RBP):
            return None
        cfa = (self.rsp if rule.cfa_register == RSP else self.rbp).plus(rule.cfa_offset)
        saved = dict(rule.saved)
        if saved.get(RETURN_ADDRESS) != -WORD:
            return None
        rbp = self.rbp
        if RBP in saved:
            rbp = Place(f"read_word({cfa.plus(saved[RBP]).in_c})")
        return cfa.plus(-WORD), Registers(cfa, rbp)
