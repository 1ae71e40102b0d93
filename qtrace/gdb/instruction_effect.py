"""What the instruction at a stop does, so that gdb need not step through it.

To step over a breakpoint gdb stops every thread, takes all breakpoints out, steps the one thread
and puts everything back. Should gdb be killed meanwhile, the kernel leaves the thread in
single-step mode (it clears that in PTRACE_DETACH, not when a tracer dies), and the next
instruction is the end of QEMU. The places where qtrace stops begin with one of a few instructions
whose effect on the registers is set instead, in one go (qtrace/gdb/inside/pass_over.py).
"""

from __future__ import annotations

from typing import Any

import capstone
from capstone import x86

LONGEST = 15


def describe(code: bytes, address: int) -> dict[str, Any] | None:
    """The effect of the instruction at a run-time address; None when it is none of the few.

    Returns:
        ``next``, where the thread goes on, None for where the word at the top of the stack
        says (``ret``); ``push``, the register or the number that it pushes; ``set``, the new
        value of a register: another register's name, or a number.
    """
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    instruction = next(decoder.disasm(code[:LONGEST], address), None)
    if instruction is None:
        return None
    after = address + instruction.size
    operands = instruction.operands
    kinds = [operand.type for operand in operands]
    if instruction.id == x86.X86_INS_ENDBR64:
        return {"next": after}
    if instruction.id == x86.X86_INS_PUSH and kinds == [x86.X86_OP_REG] and operands[0].size == 8:
        return {"next": after, "push": instruction.reg_name(operands[0].reg)}
    if instruction.id == x86.X86_INS_CALL and kinds == [x86.X86_OP_IMM]:
        return {"next": operands[0].imm, "push": after}
    if instruction.id == x86.X86_INS_JMP and kinds == [x86.X86_OP_IMM]:
        return {"next": operands[0].imm}
    if instruction.id == x86.X86_INS_RET and not kinds:
        return {"next": None}
    if instruction.id == x86.X86_INS_MOV and kinds[:1] == [x86.X86_OP_REG]:
        return _moved(instruction, after)
    return None


def pushed_by_a_byte(effect: dict[str, Any] | None, address: int) -> str | None:
    """The register that is pushed there, if by an instruction of one byte."""
    if effect is None or effect["next"] != address + 1:
        return None
    pushed = effect.get("push")
    return pushed if isinstance(pushed, str) else None


def _moved(instruction: capstone.CsInsn, after: int) -> dict[str, Any] | None:
    into, source = instruction.operands
    name = instruction.reg_name(into.reg)
    if source.type == x86.X86_OP_REG and into.size == 8:
        return {"next": after, "set": {name: instruction.reg_name(source.reg)}}
    if source.type == x86.X86_OP_IMM and into.size == 4 and name in WIDE:
        # What goes into the lower half clears the upper one.
        return {"next": after, "set": {WIDE[name]: source.imm & 0xFFFFFFFF}}
    return None


WIDE = {
    "eax": "rax", "ebx": "rbx", "ecx": "rcx", "edx": "rdx", "esi": "rsi", "edi": "rdi",
    "ebp": "rbp", **{f"r{number}d": f"r{number}" for number in range(8, 16)},
}  # fmt: skip
