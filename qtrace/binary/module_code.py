"""The instructions of an ELF module for ``qtrace.qemu.aio``, by capstone."""

from __future__ import annotations

import capstone
from capstone import x86

from qtrace.binary.instruction_set import instruction_set
from qtrace.binary.module import Module
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.machine.architecture import Architecture
from qtrace.qemu.aio.instructions import (
    Immediate,
    Instruction,
    Operand,
    Place,
    register_of,
)

_PREFIXES = ("lock ", "rep ", "repne ", "notrack ", "bnd ")


class ModuleDisassembly:
    """A module's code as its file has it: the running one may bear breakpoints."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._code = instruction_set(module.elf)
        self._decoder = self._code.decoder()

    @property
    def architecture(self) -> Architecture:
        """The processor that it is for."""
        return self._module.elf.architecture

    def address(self, symbol: str) -> int | None:
        """A symbol's run-time address, None when there is none."""
        vaddr = self._module.symbols.address(symbol)
        return None if vaddr is None else vaddr + self._module.bias

    def instructions(self, address: int, count: int) -> list[Instruction]:
        """Up to ``count`` instructions from a run-time address on."""
        code = self._read(address, self._code.longest * count)
        shown = self._decoder.disasm(code, address, count)
        if self.architecture is X86_64:
            return [_convert(i) for i in shown]
        from qtrace.binary.steps_aarch64 import steps

        return [step for i in shown for step in steps(i, self._read)]

    def is_variable(self, address: int) -> bool:
        """Not what is read-only once the program is linked (PT_GNU_RELRO)."""
        return not self._module.elf.is_settled(address - self._module.bias)

    def _read(self, address: int, size: int) -> bytes:
        return self._module.elf.read(address - self._module.bias, size)


def _convert(instruction: capstone.CsInsn) -> Instruction:
    mnemonic = instruction.mnemonic
    for prefix in _PREFIXES:
        mnemonic = mnemonic.removeprefix(prefix)
    if mnemonic == "movabs":
        mnemonic = "mov"
    operands = tuple(_operand(instruction, operand) for operand in instruction.operands)
    return Instruction(instruction.address, instruction.size, mnemonic, operands)


def _operand(instruction: capstone.CsInsn, operand: x86.X86Op) -> Operand:
    if operand.type == x86.X86_OP_REG:
        return Operand(register=register_of(instruction.reg_name(operand.reg)))
    if operand.type == x86.X86_OP_IMM:
        return Operand(immediate=Immediate(operand.imm))
    memory = operand.mem
    if memory.base == x86.X86_REG_RIP:
        return Operand(place=Place("", instruction.address + instruction.size + memory.disp))
    names = [instruction.reg_name(r) if r else "" for r in (memory.base, memory.index)]
    segment = instruction.reg_name(memory.segment) if memory.segment else ""
    return Operand(
        place=Place(names[0], memory.disp, names[1], segment if segment in ("fs", "gs") else "")
    )
