"""aio_bh_enqueue(), shared or inlined: found by the atomic OR of a QEMUBH's flags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import capstone
import numpy as np
from capstone import x86

from qtrace.binary.arrays import code_arrays
from qtrace.binary.code_x86_64 import direct_target, full_register
from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.emulated import first_emulated, is_joined, is_written, runs_once
from qtrace.binary.module import Module
from qtrace.knowledge import PENDING
from qtrace.sites.all_plan import refusal

# As many instructions are looked at for the insertion behind it; it took 7.
INSERTION = 32
# The bytes of the loop before its cmpxchg: a move and an OR.
LOOP = 24


@dataclass(frozen=True, slots=True)
class EnqueueSite:
    """A place behind such an OR, which runs once for each.

    Attributes:
        site: link-time address.
        bh: the register that holds the bottom half there.
        new_flags: what is ORed; 0 where it is in a register, ``register``.
    """

    function: Function
    site: int
    bh: str
    new_flags: int
    register: str


def find_enqueues(module: Module, flags: int) -> list[EnqueueSite]:
    """All of them; a cmpxchg of something else is left out. Raises ScanFailed.

    Args:
        flags: where QEMUBH has them.
    """
    found = []
    for address in find_cmpxchgs(module.elf, flags):
        extent = module.frames.function(address)
        if extent is None:
            continue
        function = Function(module.elf, *extent)
        site = enqueue_site(function, address, flags)
        if site is None:
            continue
        if is_joined(function, behind_loop(function, address)):
            raise refusal(module, f"more than the atomic OR at {address:#x} leads behind it")
        found.append(EnqueueSite(function, *site))
    return found


def find_cmpxchgs(elf: Elf, flags: int) -> list[int]:
    """Addresses at which the bytes read as `lock cmpxchg r32, flags(reg)`."""
    hits: list[int] = []
    for start, code in code_arrays(elf):
        for prefixes in (1, 2):
            at = np.flatnonzero(
                (code[: -4 - prefixes] == 0xF0)
                & (code[prefixes:-4] == 0x0F)
                & (code[prefixes + 1 : -3] == 0xB1)
                & (code[prefixes + 2 : -2] & 0xC0 == 0x40)
                & (code[prefixes + 3 : -1] == flags)
            )
            if prefixes == 2:
                at = at[code[at + 1] & 0xF0 == 0x40]
            hits += [int(start + offset) for offset in at]
    return sorted(hits)


def enqueue_site(function: Function, address: int, flags: int) -> tuple[int, str, int, str] | None:
    """The site behind an atomic OR of QEMUBH's flags, None when this is another cmpxchg.

    Returns its address, the register of the bottom half, the new flags (0 when they are in a
    register) and that register.
    """
    code = function.instructions
    exchange = code.get(address)
    if exchange is None or exchange.id != x86.X86_INS_CMPXCHG:
        return None
    place, source = exchange.operands
    bh = exchange.reg_name(place.mem.base)
    desired = full_register(exchange, source.reg)
    new_flags, register = _ored(function, address, desired)
    if not (new_flags & PENDING or register):
        return None
    end = address + exchange.size
    retry = code.get(end)
    if retry is None or retry.id != x86.X86_INS_JNE or (direct_target(retry) or end) >= address:
        return None
    begin = behind_loop(function, address)
    if not inserts(function, begin, bh, lambda i: _stores(i, bh, flags - 8)):
        return None
    site = first_emulated(function, begin)
    keep = {"rax", bh, register} - {""}
    if site is None or not runs_once(function, begin, site):
        site = begin
    if any(is_written(function, begin, site, name) for name in keep):
        site = begin
    return site, bh, new_flags, register


def behind_loop(function: Function, address: int) -> int:
    """The instruction behind the branch that repeats such an atomic OR."""
    end = address + int(function.instructions[address].size)
    return end + int(function.instructions[end].size)


def _ored(function: Function, address: int, desired: str) -> tuple[int, str]:
    """What is ORed into the register that cmpxchg stores: a constant, or a register."""
    instruction = function.last_write(desired, address, reach=LOOP)
    if instruction is None or instruction.id != x86.X86_INS_OR:
        return 0, ""
    operand = instruction.operands[1]
    if operand.type == x86.X86_OP_IMM:
        return int(operand.imm) & 0xFF, ""
    return 0, full_register(instruction, operand.reg)


def _stores(instruction: capstone.CsInsn, base: str, offset: int) -> bool:
    target = instruction.operands[0] if instruction.operands else None
    return (
        instruction.id == x86.X86_INS_MOV
        and target is not None
        and target.type == x86.X86_OP_MEM
        and target.mem.disp == offset
        and instruction.reg_name(target.mem.base) == base
    )


def inserts(
    function: Function, begin: int, bh: str, stores: Callable[[capstone.CsInsn], bool]
) -> bool:
    """Whether a path from there stores into the bottom half's `next`: the insertion. In
    11.1 it stands at the function's end, behind a jump.

    Args:
        bh: the register that holds it, which must not change before.
        stores: whether an instruction does.
    """
    work, seen = [begin], set[int]()
    while work and len(seen) < INSERTION:
        at = work.pop(0)
        instruction = function.instructions.get(at)
        if instruction is None or at in seen:
            continue
        seen.add(at)
        if stores(instruction):
            return True
        if bh not in function.set.writes(instruction):
            work += function.successors(instruction)
    return False
