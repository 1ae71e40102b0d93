"""What x86-64's instructions mean (``qtrace.binary.instruction_set``)."""

from __future__ import annotations

from collections.abc import Collection

import capstone
import numpy as np
import numpy.typing as npt
from capstone import x86

from qtrace.binary.arrays import code_arrays
from qtrace.binary.elf import Elf
from qtrace.binary.values import Constant, Loaded, Returned, State, Value
from qtrace.machine.arch_x86_64 import CALLER_SAVED_NAMES, ENDBR64

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

# Prefixes that is_prefix_bad() of arch/x86/kernel/uprobes.c refuses: lock, es, cs, ss, ds.
BAD_PREFIXES = frozenset({0xF0, 0x26, 0x2E, 0x36, 0x3E})


class CodeX86:
    """As ``InstructionSet``."""

    longest = 15

    def decoder(self) -> capstone.Cs:
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        engine.detail = True
        return engine

    def is_call(self, instruction: capstone.CsInsn) -> bool:
        return bool(instruction.group(x86.X86_GRP_CALL))

    def is_return(self, instruction: capstone.CsInsn) -> bool:
        return bool(instruction.group(x86.X86_GRP_RET))

    def is_jump(self, instruction: capstone.CsInsn) -> bool:
        return bool(instruction.group(x86.X86_GRP_JUMP))

    def always_jumps(self, instruction: capstone.CsInsn) -> bool:
        return bool(instruction.id == x86.X86_INS_JMP)

    def never_returns(self, instruction: capstone.CsInsn) -> bool:
        return bool(instruction.id == x86.X86_INS_UD2)

    def target(self, instruction: capstone.CsInsn) -> int | None:
        return direct_target(instruction)

    def copies(self, instruction: capstone.CsInsn) -> str:
        if instruction.id != x86.X86_INS_MOV:
            return ""
        source = instruction.operands[1]
        return full_register(instruction, source.reg) if source.type == x86.X86_OP_REG else ""

    def writes(self, instruction: capstone.CsInsn) -> set[str]:
        return writes(instruction)

    def after(self, instruction: capstone.CsInsn, before: State) -> State:
        return after(instruction, before)

    def references_to(self, elf: Elf, targets: Collection[int]) -> list[int]:
        hits: list[int] = []
        wanted = np.array(sorted(targets), dtype=np.int64)
        for start, code in code_arrays(elf):
            # call rel32, jmp rel32, and jcc rel32 (0f 8x), the displacement after the opcode.
            opcodes = np.flatnonzero(((code[:-4] & 0xFE) == 0xE8) | ((code[:-4] & 0xF0) == 0x80))
            conditional = (code[opcodes] & 0xF0) == 0x80
            opcodes = opcodes[~conditional | (code[np.maximum(opcodes - 1, 0)] == 0x0F)]
            goes_to = start + opcodes + 5 + displacements(code, opcodes + 1)
            for opcode in opcodes[np.isin(goes_to, wanted)]:
                is_conditional = (code[opcode] & 0xF0) == 0x80
                hits.append(int(start + opcode - (1 if is_conditional else 0)))
            hits += [address for target in wanted for address in _short_jumps(code, start, target)]
        return hits

    def loads_of(self, elf: Elf, address: int) -> list[int]:
        """`lea r64, [rip + x]`: 48 or 4c, 8d, the register, the displacement."""
        hits = []
        for start, code in code_arrays(elf):
            wide, lea = code[:-6] & 0xFB == 0x48, code[1:-5] == 0x8D
            at = np.flatnonzero(wide & lea & (code[2:-4] & 0xC7 == 5))
            loads = start + at + 7 + displacements(code, at + 3)
            hits += [int(start + a) for a in at[loads == address]]
        return hits

    def is_simulated(self, instruction: capstone.CsInsn) -> bool:
        """As arch/x86/kernel/uprobes.c."""
        code = bytes(instruction.bytes)
        if code[0] in (0xE8, 0xE9, 0xEB, 0x90) or 0x50 <= code[0] <= 0x57 or code[0] & 0xF0 == 0x70:
            return True
        if code[0] == 0x0F and code[1] & 0xF0 == 0x80:
            return True
        return code[0] == 0x41 and 0x50 <= code[1] <= 0x57

    def takes_probe(self, instruction: capstone.CsInsn) -> bool:
        return bytes(instruction.bytes)[0] not in BAD_PREFIXES

    def guard_size(self, code: bytes) -> int:
        """endbr64 would be single-stepped."""
        return len(ENDBR64) if code.startswith(ENDBR64) else 0


def direct_target(instruction: capstone.CsInsn) -> int | None:
    """Where a direct call or jump goes, None for an indirect one."""
    operand = instruction.operands[0] if instruction.operands else None
    return operand.imm if operand is not None and operand.type == x86.X86_OP_IMM else None


def after(instruction: capstone.CsInsn, before: State) -> State:
    """The state after one instruction."""
    if instruction.group(x86.X86_GRP_CALL):
        state = {r: v for r, v in before.items() if r not in CALLER_SAVED_NAMES}
        target = direct_target(instruction)
        if target is not None:
            state["rax"] = Returned(target)
        return state
    written = writes(instruction)
    if not written:
        return before
    state = {r: v for r, v in before.items() if r not in written}
    value = _value(instruction, before)
    if value is not None:
        state[full_register(instruction, instruction.operands[0].reg)] = value
    return state


def _value(instruction: capstone.CsInsn, before: State) -> Value | None:
    operands = instruction.operands
    if len(operands) != 2 or operands[0].type != x86.X86_OP_REG or operands[0].size < 4:
        return None
    source = operands[1]
    if instruction.id == x86.X86_INS_LEA:
        if source.mem.base == x86.X86_REG_RIP and not source.mem.index:
            return Constant(instruction.address + instruction.size + source.mem.disp)
    elif instruction.id in (x86.X86_INS_MOV, x86.X86_INS_MOVABS):
        if source.type == x86.X86_OP_IMM:
            return Constant(source.imm)
        if source.type == x86.X86_OP_REG and source.size == 8:
            return before.get(full_register(instruction, source.reg))
        if source.type == x86.X86_OP_MEM and source.mem.base == x86.X86_REG_RIP:
            return Loaded(instruction.address + instruction.size + source.mem.disp)
    elif (
        instruction.id == x86.X86_INS_XOR
        and source.type == x86.X86_OP_REG
        and source.reg == operands[0].reg
    ):
        return Constant(0)
    return None


_FULL = {
    **{f"e{n}": f"r{n}" for n in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")},
    **{n: f"r{n}" for n in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")},
    **{f"{n}{h}": f"r{n}x" for n in "abcd" for h in "lh"},
    **{f"{n}l": f"r{n}" for n in ("si", "di", "bp", "sp")},
    **{f"r{n}{s}": f"r{n}" for n in range(8, 16) for s in ("d", "w", "b")},
}


def full_register(instruction: capstone.CsInsn, register: int) -> str:
    """The 64-bit register that a register is (part of)."""
    name = str(instruction.reg_name(register))
    return _FULL.get(name, name)


def writes(instruction: capstone.CsInsn) -> set[str]:
    """The 64-bit registers that it changes, named in it or not."""
    return {full_register(instruction, register) for register in instruction.regs_access()[1]}


def displacements(code: Bytes, at: Offsets) -> Offsets:
    """The signed 32-bit displacements that start at these offsets."""
    value = np.zeros(len(at), np.int64)
    for byte in range(4):
        value |= code[at + byte].astype(np.int64) << (8 * byte)
    return (value ^ 0x80000000) - 0x80000000


def _short_jumps(code: Bytes, base: int, target: int) -> list[int]:
    """jmp rel8 and jcc rel8 to a target: a tail call of its neighbour in the same file."""
    first, last = max(target - base - 129, 0), min(target - base + 126, len(code) - 1)
    if last <= first:
        return []
    at = np.arange(first, last)
    is_jump = (code[at] == 0xEB) | ((code[at] & 0xF0) == 0x70)
    goes_to = base + at + 2 + code[at + 1].astype(np.int8)
    return [int(base + offset) for offset in at[is_jump & (goes_to == target)]]
