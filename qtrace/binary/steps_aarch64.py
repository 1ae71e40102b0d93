"""aarch64's instructions in the words of ``qtrace.qemu.aio.instructions``.

One that does several things becomes several steps: the first stands at its address, the others at
the bytes behind. What loads half a register clears its rest, so that the whole one is named.
What has no word there becomes ``other``, which writes its first operand.
"""

from __future__ import annotations

from collections.abc import Callable

import capstone
from capstone import arm64

from qtrace.binary.code_aarch64 import BRANCHES, CALLS, RETURNS, added, whole
from qtrace.qemu.aio.instructions import Immediate, Instruction, Operand, Place, Register

LOADS = frozenset({
    "ldr", "ldur", "ldrb", "ldurb", "ldrh", "ldurh", "ldrsw", "ldursw", "ldrsb", "ldrsh", "ldar",
    "ldarb", "ldapr", "ldaprb",
})  # fmt: skip
STORES = frozenset({"str", "stur", "strb", "sturb", "strh", "sturh", "stlr", "stlrb"})
PAIRS = frozenset({"ldp", "stp"})
NOTHING = frozenset({
    "nop", "bti", "paciasp", "autiasp", "hint", "xpaclri", "dmb", "prfm", "prfum", "isb", "yield",
})  # fmt: skip
_OPERATIONS = {0: "add", 1: "clr", 2: "eor", 3: "set", 8: "swp"}
# Of a thread, for the user's own use.
THREAD_REGISTERS = {arm64.ARM64_SYSREG_TPIDR_EL0: "tpidr_el0"}

# A piece of an instruction: a word, and operands.
Piece = tuple[str, tuple[Operand, ...]]
# The code at an address, so many bytes.
Read = Callable[[int, int], bytes]


def steps(instruction: capstone.CsInsn, read: Read) -> list[Instruction]:
    """What an instruction does, one thing after the other.

    Args:
        read: code at such an address as the instruction has.
    """
    pieces = _pieces(instruction, read)
    at, last = instruction.address, len(pieces) - 1
    return [
        Instruction(at + n, 1 if n < last else instruction.size - last, word, operands)
        for n, (word, operands) in enumerate(pieces)
    ]


def _pieces(instruction: capstone.CsInsn, read: Read) -> list[Piece]:
    word, operands = instruction.mnemonic, instruction.operands
    if word in NOTHING:
        return [("nop", ())]
    if instruction.id in RETURNS:
        return [("ret", ())]
    if instruction.id in (arm64.ARM64_INS_BRK, arm64.ARM64_INS_UDF):
        return [("ud2", ())]
    if instruction.id in CALLS:
        target = _plain(instruction, operands[0])
        return [*_atomic(target, read), ("call", (target,))]
    if instruction.id in BRANCHES:
        return _branch(instruction)
    if word in LOADS or word in STORES:
        return _moves(instruction, [operands[0]], word in LOADS)
    if word in PAIRS:
        return _moves(instruction, list(operands[:2]), word == "ldp")
    shown = [_plain(instruction, operand) for operand in operands]
    if word in ("adr", "adrp"):
        return [("lea", (shown[0], Operand(place=Place("", operands[1].imm))))]
    if word in ("add", "sub") and len(operands) == 3 and operands[2].type == arm64.ARM64_OP_IMM:
        if word == "add" and operands[2].shift.type == arm64.ARM64_SFT_LSL:
            # The upper part of a distance: no place of its own.
            return _sum(shown[0], shown[1], shown[2])
        distance = added(operands[2]) * (1 if word == "add" else -1)
        place = Place(_name(instruction, operands[1]), distance)
        return [("lea", (shown[0], Operand(place=place)))]
    if word == "add" and len(operands) == 3 and _are_whole(instruction):
        return _sum(*shown)
    if word in ("mov", "movz"):
        return [("mov", (shown[0], _stored(instruction, operands[1])))]
    if word == "cmp" and len(operands) == 2:
        return [("cmp", tuple(shown))]
    if word == "mrs" and operands[1].type == arm64.ARM64_OP_SYS:
        name = THREAD_REGISTERS.get(operands[1].sys)
        if name:
            return [("mov", (shown[0], Operand(register=Register(name, 8))))]
    return [("other", tuple(shown[:1]))]


def _are_whole(instruction: capstone.CsInsn) -> bool:
    """Whether an addition takes its registers as they are: all 64 bits, and not shifted."""
    last = instruction.operands[2]
    names = (str(instruction.reg_name(operand.reg))[:1] for operand in instruction.operands)
    plain = last.shift.type == arm64.ARM64_SFT_INVALID and last.ext == arm64.ARM64_EXT_INVALID
    return last.type == arm64.ARM64_OP_REG and plain and all(name == "x" for name in names)


def _sum(target: Operand, one: Operand, other: Operand) -> list[Piece]:
    if target == other:
        one, other = other, one
    moved: list[Piece] = [] if target == one else [("mov", (target, one))]
    return [*moved, ("add", (target, other))]


def _branch(instruction: capstone.CsInsn) -> list[Piece]:
    target = _plain(instruction, instruction.operands[-1])
    if instruction.id in (arm64.ARM64_INS_CBZ, arm64.ARM64_INS_CBNZ):
        compared = _plain(instruction, instruction.operands[0])
        taken = "je" if instruction.id == arm64.ARM64_INS_CBZ else "jne"
        return [("cmp", (compared, Operand(immediate=Immediate(0)))), (taken, (target,))]
    conditional = instruction.mnemonic.startswith(("b.", "tb"))
    return [("jcc" if conditional else "jmp", (target,))]


def _moves(
    instruction: capstone.CsInsn, registers: list[arm64.Arm64Op], loads: bool
) -> list[Piece]:
    """Loads or stores of one or two registers, and what becomes of the base."""
    place = instruction.operands[len(registers)]
    if place.type == arm64.ARM64_OP_IMM:
        # At a fixed distance.
        target = Operand(place=Place("", place.imm))
        return [("mov", (_plain(instruction, registers[0]), target))]
    if place.type != arm64.ARM64_OP_MEM:
        return [("other", (_plain(instruction, registers[0]),))]
    base = whole(str(instruction.reg_name(place.mem.base)))
    index = whole(str(instruction.reg_name(place.mem.index))) if place.mem.index else ""
    before: list[Piece] = []
    after: list[Piece] = []
    offset = place.mem.disp
    behind = instruction.operands[len(registers) + 1 :]
    itself = Operand(register=Register(base, 8))
    if behind and behind[0].type == arm64.ARM64_OP_IMM:
        after = [("lea", (itself, Operand(place=Place(base, behind[0].imm))))]
        offset = 0
    elif instruction.writeback:
        before, offset = [("lea", (itself, Operand(place=Place(base, offset))))], 0
    size = 4 if str(instruction.reg_name(registers[0].reg))[:1] == "w" else 8
    moves: list[Piece] = []
    for number, register in enumerate(registers):
        memory = Operand(place=Place(base, offset + number * size, index))
        if loads:
            moves.append(("mov", (_plain(instruction, register), memory)))
        else:
            moves.append(("mov", (memory, _stored(instruction, register))))
    if loads and whole(str(instruction.reg_name(registers[0].reg))) == base:
        # The base is needed until the last.
        moves.reverse()
    return [*before, *moves, *after]


def _atomic(target: Operand, read: Read) -> list[Piece]:
    """What a call of one of the compiler's helpers does (-moutline-atomics): of these each looks
    which instructions the processor has, and the first that it may take tells."""
    helper = None if target.immediate is None else atomic_helper(read(target.immediate.value, 20))
    if helper is None:
        return []
    if helper[0] == "cas":
        # Expected, desired, where.
        return [("cmpxchg", _exchanged("x2", "x1"))]
    # Value, where.
    return [("xchg" if helper[0] == "swp" else "atomic", _exchanged("x1", "x0"))]


def atomic_helper(code: bytes) -> tuple[str, int] | None:
    """What such a helper does, by its first 20 bytes, and to how many bytes of memory; None where
    it is no helper. What memory held before is in x0 behind its call.

    ``cas`` takes what is expected in x0, what is stored in x1 and the place in x2; the others
    (``swp``, and for what is added, cleared, exclusively ORed and set ``add``, ``clr``, ``eor``,
    ``set``) a value in x0 and the place in x1.
    """
    words = [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code) - 3, 4)]
    if words[:1] == [0xD503245F]:
        # bti c
        words = words[1:]
    # adrp x16; ldrb w16, [x16, #x]; cbz w16, ...
    if len(words) < 4 or words[0] & 0x9F00001F != 0x90000010 or words[1] & 0xFFC003FF != 0x39400210:
        return None
    size = 1 << (words[3] >> 30)
    if words[3] & 0x3FA07C00 == 0x08A07C00:
        return "cas", size
    # swp, ldadd, ldclr, ldeor, ldset
    operation = _OPERATIONS.get(words[3] >> 12 & 0xF)
    if words[3] & 0x3F200C00 == 0x38200000 and operation:
        return operation, size
    return None


def _exchanged(where: str, value: str) -> tuple[Operand, Operand]:
    return Operand(place=Place(where, 0)), Operand(register=Register(value, 8))


def _name(instruction: capstone.CsInsn, operand: arm64.Arm64Op) -> str:
    return whole(str(instruction.reg_name(operand.reg)))


def _stored(instruction: capstone.CsInsn, operand: arm64.Arm64Op) -> Operand:
    """What is moved elsewhere: of half a register that is not what the whole one holds."""
    shown = _plain(instruction, operand)
    if shown.register is not None and str(instruction.reg_name(operand.reg))[:1] == "w":
        return Operand(register=Register(shown.register.name, 4))
    return shown


def _plain(instruction: capstone.CsInsn, operand: arm64.Arm64Op) -> Operand:
    """A register or a number."""
    if operand.type == arm64.ARM64_OP_IMM:
        return Operand(immediate=Immediate(added(operand)))
    if operand.type == arm64.ARM64_OP_REG:
        name = _name(instruction, operand)
        if name == "xzr":
            return Operand(immediate=Immediate(0))
        return Operand(register=Register(name, 8 if name[0] in "xs" else 0))
    return Operand()
