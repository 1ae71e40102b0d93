"""Which instructions take a probe, which the kernel emulates, and which run once per pass."""

from __future__ import annotations

import capstone
from capstone import x86

from qtrace.binary.dataflow import Function, direct_target, writes
from qtrace.binary.elf import Elf
from qtrace.machine.arch_x86_64 import ENDBR64

# Prefixes that is_prefix_bad() of arch/x86/kernel/uprobes.c refuses: lock, es, cs, ss, ds.
BAD_PREFIXES = frozenset({0xF0, 0x26, 0x2E, 0x36, 0x3E})


def emulated(instruction: capstone.CsInsn) -> bool:
    """Whether the kernel emulates it under a uprobe (arch/x86/kernel/uprobes.c)."""
    code = bytes(instruction.bytes)
    if code[0] in (0xE8, 0xE9, 0xEB, 0x90) or 0x50 <= code[0] <= 0x57 or code[0] & 0xF0 == 0x70:
        return True
    if code[0] == 0x0F and code[1] & 0xF0 == 0x80:
        return True
    return code[0] == 0x41 and 0x50 <= code[1] <= 0x57


def first_emulated(function: Function, begin: int) -> int | None:
    """The first emulated instruction from ``begin`` on, in a straight line."""
    at = begin
    while at in function.instructions:
        instruction = function.instructions[at]
        if emulated(instruction):
            return at
        if ends_block(instruction):
            return None
        at += instruction.size
    return None


def runs_once(function: Function, begin: int, site: int) -> bool:
    """Whether the site runs exactly once when control passes ``begin``: nothing jumps in
    between, and no path leads from the site back to it without passing ``begin``. Whether
    something jumps to ``begin`` itself is ``is_joined``."""
    for instruction in function.instructions.values():
        if instruction.group(x86.X86_GRP_JUMP):
            target = direct_target(instruction)
            if target is not None and begin < target <= site:
                return False
    seen: set[int] = set()
    work = function.successors(function.instructions[site])
    while work:
        address = work.pop()
        if address in seen or address == begin or address not in function.instructions:
            continue
        if address == site:
            return False
        seen.add(address)
        work += function.successors(function.instructions[address])
    return True


def is_joined(function: Function, at: int) -> bool:
    """Whether something jumps to an instruction, which then does not only follow the one above."""
    return any(
        instruction.group(x86.X86_GRP_JUMP) and direct_target(instruction) == at
        for instruction in function.instructions.values()
    )


def is_written(function: Function, begin: int, end: int, register: str) -> bool:
    return any(
        register in writes(instruction)
        for at, instruction in function.instructions.items()
        if begin <= at < end
    )


def past_endbr(elf: Elf, function: int) -> int:
    """A function's first instruction that does something, by its link-time start: endbr64 would be
    single-stepped."""
    guarded = elf.read(function, len(ENDBR64)) == ENDBR64
    return function + len(ENDBR64) if guarded else function


def moves_stack(instruction: capstone.CsInsn) -> bool:
    return "rsp" in writes(instruction)


def ends_block(instruction: capstone.CsInsn) -> bool:
    return any(
        instruction.group(group) for group in (x86.X86_GRP_JUMP, x86.X86_GRP_CALL, x86.X86_GRP_RET)
    )
