"""Where the return addresses around a probe lie, as its program finds them.

Frames are found by the stack pointer or, as in Ubuntu's builds, by the frame pointer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qtrace.binary.cfi import Rule
from qtrace.machine.architecture import Architecture


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

    def filling(self, name: str, machine: Architecture) -> dict[str, int]:
        """What fills the holes of a PLACE of probes/holes.h."""
        return {
            name: machine.register_offset(self.register),
            f"{name}_OFFSET": self.offset,
            f"{name}_IS_POINTED_TO": int(self.beyond is not None),
            f"{name}_BEYOND": self.beyond or 0,
        }


@dataclass(frozen=True, slots=True)
class Registers:
    """What the two registers hold that frames are found by: the stack pointer and the frame
    pointer."""

    machine: Architecture
    stack: Place
    frame: Place | None

    @classmethod
    def here(cls, machine: Architecture) -> Registers:
        """Themselves, where a probe sits."""
        frame = next(n for n, number in machine.numbers.items() if number == machine.frame_pointer)
        return cls(machine, Place(machine.stack_pointer_name), Place(frame))

    def caller(self, rule: Rule | None) -> tuple[Place, Registers] | None:
        """Where the return address of a frame lies, and the registers of its caller; None where
        the rule (of the frame's pc) does not tell, or it is still in a register."""
        machine = self.machine
        bases = {machine.stack_pointer: self.stack, machine.frame_pointer: self.frame}
        base = bases.get(rule.cfa_register) if rule is not None else None
        if rule is None or base is None:
            return None
        cfa = base.plus(rule.cfa_offset)
        saved = dict(rule.saved)
        if machine.return_address not in saved:
            return None
        frame = self.frame
        if machine.frame_pointer in saved:
            frame = cfa.plus(saved[machine.frame_pointer]).word()
        return cfa.plus(saved[machine.return_address]), Registers(machine, cfa, frame)
