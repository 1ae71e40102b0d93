"""What a register holds at an instruction, decided over the function's control flow.

A value is known only when every path that reaches the instruction agrees on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import capstone
import numpy as np
import numpy.typing as npt
from capstone import x86

from qtrace.binary.cfi import CallFrames
from qtrace.binary.elf import Elf
from qtrace.machine.arch_x86_64 import CALLER_SAVED_NAMES

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Constant:
    """An immediate, or the address that a ``lea reg, [rip + x]`` yields."""

    value: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of a static variable at this link-time address."""

    address: int


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call to the function at this link-time address returned."""

    function: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """Memory that nobody else knows yet: what the call at this link-time address allocated."""

    call: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The halves of a vector register."""

    low: Value | None
    high: Value | None


@dataclass(frozen=True, slots=True)
class Argument:
    """What a register held when the function was entered."""

    register: str


Value = Constant | Loaded | Returned | Fresh | Pair | Argument
State = dict[str, Value]
Step = Callable[[capstone.CsInsn, State], State]


class Function:
    """One disassembled function: instructions by address, edges between them."""

    def __init__(self, elf: Elf, start: int, end: int) -> None:
        self.start, self.end = start, end
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        engine.detail = True
        code = elf.read(start, end - start)
        self.instructions = {i.address: i for i in engine.disasm(code, start)}
        self._successors: dict[int, list[int]] = {}

    def callee(self, address: int) -> int | None:
        """The target of a direct call, or of a direct jump out of the function (a tail call)."""
        instruction = self.instructions[address]
        if instruction.mnemonic == "call":
            return direct_target(instruction)
        if instruction.mnemonic.startswith("j"):
            target = direct_target(instruction)
            if target is not None and not self.start <= target < self.end:
                return target
        return None

    def calls(self) -> dict[int, int]:
        """The direct calls in it: where each stands and goes to (link-time addresses)."""
        return {
            address: target
            for address, instruction in self.instructions.items()
            if instruction.id == x86.X86_INS_CALL
            and (target := direct_target(instruction)) is not None
        }

    def successors(self, instruction: capstone.CsInsn) -> list[int]:
        """Where control goes next inside the function."""
        known = self._successors.get(instruction.address)
        if known is None:
            known = self._successors[instruction.address] = self._find_successors(instruction)
        return known

    def _find_successors(self, instruction: capstone.CsInsn) -> list[int]:
        following = instruction.address + instruction.size
        if instruction.group(x86.X86_GRP_RET) or instruction.id == x86.X86_INS_UD2:
            return []
        if instruction.group(x86.X86_GRP_JUMP):
            target = direct_target(instruction)
            inside = [target] if target is not None and target in self.instructions else []
            return inside if instruction.id == x86.X86_INS_JMP else [*inside, following]
        return [following]

    def last_write(self, register: str, before: int, reach: int) -> capstone.CsInsn | None:
        """The nearest instruction above an address that writes a register, within so many bytes.

        Whether a path leads from there, and no other one, is the caller's to know.
        """
        for at in sorted(self.instructions, reverse=True):
            if before - reach <= at < before and register in writes(self.instructions[at]):
                return self.instructions[at]
        return None

    def states(self, step: Step | None = None, arguments: Iterable[str] = ()) -> dict[int, State]:
        """The known register values before each instruction, joined over all paths.

        Args:
            step: gives the state after one instruction; it may follow more than ``after`` does.
            arguments: registers whose contents at the function's entry are followed, too.
        """
        step = step or after
        entered = self._predecessors()
        states: dict[int, State] = {}
        # Blocks that no direct edge enters (jump tables, the function itself) know nothing.
        work = [a for a in self.instructions if a not in entered]
        for address in work:
            states[address] = {}
        states[self.start] = {register: Argument(register) for register in arguments}
        while work:
            address = work.pop()
            instruction = self.instructions[address]
            left = step(instruction, states[address])
            for target in self.successors(instruction):
                if target not in self.instructions:
                    continue
                before = states.get(target)
                joined = left if before is None else _join(before, left)
                if before is None or joined != before:
                    states[target] = joined
                    work.append(target)
        return states

    def _predecessors(self) -> set[int]:
        entered = {t for i in self.instructions.values() for t in self.successors(i)}
        entered.discard(self.start)
        return entered


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


def _join(one: State, other: State) -> State:
    return {r: v for r, v in one.items() if other.get(r) == v}


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


def references_to(elf: Elf, targets: Iterable[int]) -> list[int]:
    """Addresses at which the bytes read as a direct call or jump to one of ``targets``.

    A search over raw bytes: each hit still has to be an instruction (``Function``).
    """
    hits: list[int] = []
    wanted = np.array(sorted(targets), dtype=np.int64)
    for start, code in elf.code_bytes():
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


def callers_of(
    elf: Elf, frames: CallFrames, targets: Iterable[int]
) -> dict[tuple[int, int], list[int]]:
    """The functions, by start and end, that may call or jump to one of ``targets``, with the places
    at which their bytes read so: see ``references_to``."""
    found: dict[tuple[int, int], list[int]] = {}
    for address in references_to(elf, targets):
        extent = frames.function(address)
        if extent is not None:
            found.setdefault(extent, []).append(address)
    return found


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
