"""What the instructions of a processor mean to whoever follows code or chooses sites in it.

The other half of ``qtrace.machine.architecture``: this one takes capstone and numpy, which gdb's
own Python does not have.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Protocol

import capstone

from qtrace.binary.elf import Elf
from qtrace.binary.values import State


class InstructionSet(Protocol):
    """Of one processor. Registers go by the name of the whole one that they are (part of).

    Attributes:
        longest: instruction, in bytes.
    """

    longest: int

    def decoder(self) -> capstone.Cs:
        """A disassembler that shows operands."""

    def is_call(self, instruction: capstone.CsInsn) -> bool: ...

    def is_return(self, instruction: capstone.CsInsn) -> bool: ...

    def is_jump(self, instruction: capstone.CsInsn) -> bool:
        """Whether it jumps, always or sometimes; neither a call nor a return."""

    def always_jumps(self, instruction: capstone.CsInsn) -> bool: ...

    def never_returns(self, instruction: capstone.CsInsn) -> bool:
        """Whether it is a trap, where the compiler knows that nothing goes on."""

    def target(self, instruction: capstone.CsInsn) -> int | None:
        """Where a direct call or jump goes, None for an indirect one."""

    def copies(self, instruction: capstone.CsInsn) -> str:
        """The register that it copies to another, and does nothing else; empty for any other."""

    def writes(self, instruction: capstone.CsInsn) -> AbstractSet[str]:
        """The registers that it changes, named in it or not."""

    def after(self, instruction: capstone.CsInsn, before: State) -> State:
        """What is known after it."""

    def references_to(self, elf: Elf, targets: Collection[int]) -> list[int]:
        """Addresses at which the bytes read as a direct call or jump to one of ``targets``.

        A search over raw bytes: each hit still has to be an instruction (``Function``).
        """

    def loads_of(self, elf: Elf, address: int) -> list[int]:
        """Addresses at which the bytes read as an instruction that makes this address."""

    def is_simulated(self, instruction: capstone.CsInsn) -> bool:
        """Whether the kernel does its work under a uprobe, without a second trap."""

    def takes_probe(self, instruction: capstone.CsInsn) -> bool:
        """Whether the kernel lets a uprobe sit on it."""

    def guard_size(self, code: bytes) -> int:
        """Bytes of what a function begins with only so that it may be jumped to (endbr64, bti)."""


@cache
def _of(name: str) -> InstructionSet:
    # Nobody needs both at once.
    if name == "aarch64":
        from qtrace.binary.code_aarch64 import CodeAarch64

        return CodeAarch64()
    from qtrace.binary.code_x86_64 import CodeX86

    return CodeX86()


def instruction_set(elf: Elf) -> InstructionSet:
    """That of the processor that a file is for."""
    return _of(elf.architecture.name)
