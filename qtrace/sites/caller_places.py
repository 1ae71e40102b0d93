"""Where the return addresses around a probe lie, as its program finds them.

Frames are found by the stack pointer or, as in Ubuntu's builds, by rbp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qtrace.binary.cfi import Rule
from qtrace.machine.arch_x86_64 import RBP, RETURN_ADDRESS, RSP, pt_regs_offset

WORD = 8


@dataclass(frozen=True, slots=True)
class Place:
    """An address: so many bytes from what a register holds; with ``beyond`` so many from what
    lies there."""

    register: str
    offset: int = 0
    beyond: int | None = None

    def plus(self, offset: int) -> Place:
        if self.beyond is not None:
            return replace(self, beyond=self.beyond + offset)
        return replace(self, offset=self.offset + offset)

    def word(self) -> Place | None:
        """What lies there; None where that lies behind two pointers, which no program follows."""
        return replace(self, beyond=0) if self.beyond is None else None

    def filling(self, name: str) -> dict[str, int]:
        """What fills the holes of a PLACE of probes/holes.h."""
        return {
            name: pt_regs_offset(self.register),
            f"{name}_OFFSET": self.offset,
            f"{name}_IS_POINTED_TO": int(self.beyond is not None),
            f"{name}_BEYOND": self.beyond or 0,
        }


@dataclass(frozen=True, slots=True)
class Registers:
    """What the two registers hold that frames are found by."""

    rsp: Place = Place("rsp")
    rbp: Place | None = Place("rbp")

    def caller(self, rule: Rule | None) -> tuple[Place, Registers] | None:
        """Where the return address of a frame lies, and the registers of its caller; None where
        the rule (of the frame's pc) does not tell."""
        if rule is None or rule.cfa_register not in (RSP, RBP):
            return None
        base = self.rsp if rule.cfa_register == RSP else self.rbp
        if base is None:
            return None
        cfa = base.plus(rule.cfa_offset)
        saved = dict(rule.saved)
        if saved.get(RETURN_ADDRESS) != -WORD:
            return None
        rbp = self.rbp
        if RBP in saved:
            rbp = cfa.plus(saved[RBP]).word()
        return cfa.plus(-WORD), Registers(cfa, rbp)
