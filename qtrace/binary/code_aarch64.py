"""What aarch64's instructions mean (``qtrace.binary.instruction_set``)."""

from __future__ import annotations

from collections.abc import Collection

import capstone
import numpy as np
import numpy.typing as npt
from capstone import arm64

from qtrace.binary.arrays import code_arrays
from qtrace.binary.elf import Elf
from qtrace.binary.values import Constant, Loaded, Returned, State, Value
from qtrace.machine.arch_aarch64 import CALLER_SAVED_NAMES

Words = npt.NDArray[np.uint32]

BRANCHES = frozenset({
    arm64.ARM64_INS_B, arm64.ARM64_INS_BR, arm64.ARM64_INS_CBZ, arm64.ARM64_INS_CBNZ,
    arm64.ARM64_INS_TBZ, arm64.ARM64_INS_TBNZ, arm64.ARM64_INS_BRAA, arm64.ARM64_INS_BRAB,
    arm64.ARM64_INS_BRAAZ, arm64.ARM64_INS_BRABZ,
})  # fmt: skip
CALLS = frozenset({
    arm64.ARM64_INS_BL, arm64.ARM64_INS_BLR, arm64.ARM64_INS_BLRAA, arm64.ARM64_INS_BLRAB,
    arm64.ARM64_INS_BLRAAZ, arm64.ARM64_INS_BLRABZ,
})  # fmt: skip
RETURNS = frozenset({arm64.ARM64_INS_RET, arm64.ARM64_INS_RETAA, arm64.ARM64_INS_RETAB})
MOVES = frozenset({arm64.ARM64_INS_MOV, arm64.ARM64_INS_MOVZ})
LITERALS = frozenset({arm64.ARM64_INS_LDR, arm64.ARM64_INS_LDRSW})
PLAIN = frozenset({arm64.ARM64_INS_RET, arm64.ARM64_INS_BR, arm64.ARM64_INS_BLR})
# How far behind an adrp the instruction may stand that adds the rest, in instructions.
NEAR = 16
# bti (with or without c, j); paciasp is more than a guard, and single-stepped like any other.
BTI = (0xD503241F, 0xD503245F, 0xD503249F, 0xD50324DF)


class CodeAarch64:
    """As ``InstructionSet``."""

    longest = 4

    def decoder(self) -> capstone.Cs:
        engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        engine.detail = True
        return engine

    def is_call(self, instruction: capstone.CsInsn) -> bool:
        return instruction.id in CALLS

    def is_return(self, instruction: capstone.CsInsn) -> bool:
        return instruction.id in RETURNS

    def is_jump(self, instruction: capstone.CsInsn) -> bool:
        return instruction.id in BRANCHES

    def always_jumps(self, instruction: capstone.CsInsn) -> bool:
        if instruction.id == arm64.ARM64_INS_B:
            return instruction.cc in (arm64.ARM64_CC_INVALID, arm64.ARM64_CC_AL)
        return self.is_jump(instruction) and not self._compares(instruction)

    def _compares(self, instruction: capstone.CsInsn) -> bool:
        return instruction.id in (
            arm64.ARM64_INS_CBZ, arm64.ARM64_INS_CBNZ, arm64.ARM64_INS_TBZ, arm64.ARM64_INS_TBNZ,
        )  # fmt: skip

    def never_returns(self, instruction: capstone.CsInsn) -> bool:
        return instruction.id in (arm64.ARM64_INS_BRK, arm64.ARM64_INS_UDF)

    def target(self, instruction: capstone.CsInsn) -> int | None:
        if not (self.is_jump(instruction) or self.is_call(instruction)):
            return None
        last = instruction.operands[-1] if instruction.operands else None
        return last.imm if last is not None and last.type == arm64.ARM64_OP_IMM else None

    def copies(self, instruction: capstone.CsInsn) -> str:
        if instruction.id != arm64.ARM64_INS_MOV:
            return ""
        names = [str(instruction.reg_name(operand.reg)) for operand in instruction.operands]
        return names[1] if all(name == whole(name) for name in names) else ""

    def writes(self, instruction: capstone.CsInsn) -> set[str]:
        return {whole(str(instruction.reg_name(r))) for r in instruction.regs_access()[1]}

    def after(self, instruction: capstone.CsInsn, before: State) -> State:
        if self.is_call(instruction):
            state = {r: v for r, v in before.items() if r not in CALLER_SAVED_NAMES}
            target = self.target(instruction)
            if target is not None:
                state["x0"] = Returned(target)
            return state
        written = self.writes(instruction)
        if not written:
            return before
        state = {r: v for r, v in before.items() if r not in written}
        value = _value(instruction, before)
        if value is not None:
            state[whole(str(instruction.reg_name(instruction.operands[0].reg)))] = value
        return state

    def references_to(self, elf: Elf, targets: Collection[int]) -> list[int]:
        hits: list[int] = []
        wanted = np.array(sorted(targets), dtype=np.int64)
        for start, words in _words(elf):
            # b and bl; b.cond, cbz and cbnz; tbz and tbnz: what each reaches, in words.
            for kind, mask, shift, bits in (
                (0x14000000, 0x7C000000, 0, 26),
                (0x54000000, 0xFF000000, 5, 19),
                (0x34000000, 0x7E000000, 5, 19),
                (0x36000000, 0x7E000000, 5, 14),
            ):
                at = np.flatnonzero((words & mask) == kind)
                goes_to = start + 4 * at + 4 * _signed(words[at], shift, bits)
                hits += [int(start + 4 * a) for a in at[np.isin(goes_to, wanted)]]
        return hits

    def loads_of(self, elf: Elf, address: int) -> list[int]:
        """adrp xn, page; add xm, xn, #rest, shortly behind it."""
        hits = []
        for start, words in _words(elf):
            adds = (words & 0xFFC00000) == 0x91000000
            adds &= (words >> 10 & 0xFFF) == (address & 0xFFF)
            pages = (words & 0x9F000000) == 0x90000000
            for add in map(int, np.flatnonzero(adds)):
                base = int(words[add]) >> 5 & 31
                for at in range(add - 1, max(add - 1 - NEAR, -1), -1):
                    if pages[at] and int(words[at]) & 31 == base:
                        if _page(int(words[at]), start + 4 * at) == address & -4096:
                            hits.append(int(start + 4 * add))
                        break
        return hits

    def is_simulated(self, instruction: capstone.CsInsn) -> bool:
        """As arch/arm64/kernel/probes/decode-insn.c: what reads or changes the pc."""
        word = int.from_bytes(instruction.bytes, "little")
        if instruction.id in (arm64.ARM64_INS_ADR, arm64.ARM64_INS_ADRP):
            return True
        # General registers alone: bit 26 is that of the others.
        if instruction.id in LITERALS and _is_literal(word) and not word >> 26 & 1:
            return True
        signed = instruction.id not in PLAIN and word >> 25 == 0x6B and bool(word & 0x800)
        branches = self.is_jump(instruction) or self.is_call(instruction)
        return (branches or self.is_return(instruction)) and not signed

    def takes_probe(self, instruction: capstone.CsInsn) -> bool:
        """As aarch64_insn_is_steppable() there: no jump with a signature, no exclusive load or
        store (its pair would never succeed), nothing that traps, no other word near the pc."""
        if self.is_simulated(instruction):
            return True
        word = int.from_bytes(instruction.bytes, "little")
        branches = self.is_jump(instruction) or self.is_call(instruction)
        exclusive = word & 0x3F800000 == 0x08000000
        # svc, hvc, smc, brk, hlt, udf; msr; prfm and vector registers from a literal.
        traps = word >> 24 == 0xD4 or word >> 16 == 0
        system = word & 0xFFF00000 == 0xD5100000 or word & 0xFFF8F01F == 0xD500401F
        if branches or self.is_return(instruction) or exclusive or traps or system:
            return False
        return not _is_literal(word)

    def guard_size(self, code: bytes) -> int:
        """bti would be single-stepped."""
        return 4 if int.from_bytes(code[:4], "little") in BTI else 0


def whole(name: str) -> str:
    """The 64-bit register that a register is (part of)."""
    if name[:1] == "w" and name[1:].isdigit():
        return f"x{name[1:]}"
    return {"fp": "x29", "lr": "x30", "wsp": "sp", "wzr": "xzr"}.get(name, name)


def added(operand: arm64.Arm64Op) -> int:
    """An immediate, shifted as it says."""
    shifted = operand.shift.type == arm64.ARM64_SFT_LSL
    return int(operand.imm) << (operand.shift.value if shifted else 0)


def _value(instruction: capstone.CsInsn, before: State) -> Value | None:
    operands = instruction.operands
    if not operands or operands[0].type != arm64.ARM64_OP_REG:
        return None
    if instruction.id in (arm64.ARM64_INS_ADRP, arm64.ARM64_INS_ADR):
        return Constant(operands[1].imm)
    if instruction.id in MOVES and len(operands) == 2:
        if operands[1].type == arm64.ARM64_OP_IMM:
            return Constant(added(operands[1]))
        name = str(instruction.reg_name(operands[1].reg))
        if name in ("xzr", "wzr"):
            return Constant(0)
        return before.get(name) if name == whole(name) else None
    if instruction.id == arm64.ARM64_INS_ADD and len(operands) == 3:
        base = before.get(whole(str(instruction.reg_name(operands[1].reg))))
        if isinstance(base, Constant) and operands[2].type == arm64.ARM64_OP_IMM:
            return Constant(base.value + added(operands[2]))
    if instruction.id == arm64.ARM64_INS_LDR and operands[1].type == arm64.ARM64_OP_MEM:
        place = operands[1].mem
        base = before.get(whole(str(instruction.reg_name(place.base)))) if place.base else None
        whole_word = str(instruction.reg_name(operands[0].reg))[:1] == "x"
        if isinstance(base, Constant) and not place.index and whole_word and len(operands) == 2:
            return Loaded(base.value + place.disp)
    return None


def _words(elf: Elf) -> list[tuple[int, Words]]:
    """Link-time start and instructions of each executable segment."""
    return [(start, code[: len(code) // 4 * 4].view("<u4")) for start, code in code_arrays(elf)]


def _signed(words: Words, shift: int, bits: int) -> npt.NDArray[np.int64]:
    """The number with a sign that lies there in each of them."""
    low = words.astype(np.int64) >> shift & ((1 << bits) - 1)
    return np.asarray((low ^ (1 << bits - 1)) - (1 << bits - 1))


def _page(word: int, address: int) -> int:
    """What an adrp yields."""
    pages = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
    return (address & -4096) + ((pages ^ 1 << 20) - (1 << 20) << 12)


def _is_literal(word: int) -> bool:
    """A load (or prefetch) of what lies at a fixed distance: 01 in the class's middle."""
    return word & 0x3B000000 == 0x18000000
