"""Where in a function a probe is cheap, and which instructions run once per pass."""

from __future__ import annotations

import capstone

from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.instruction_set import instruction_set

# What no guard is longer than.
GUARD = 16


def first_emulated(function: Function, begin: int) -> int | None:
    """The first emulated instruction from ``begin`` on, in a straight line."""
    at = begin
    while at in function.instructions:
        instruction = function.instructions[at]
        if function.set.is_simulated(instruction):
            return at
        if ends_block(function, instruction):
            return None
        at += instruction.size
    return None


def runs_once(function: Function, begin: int, site: int) -> bool:
    """Whether the site runs exactly once when control passes ``begin``: nothing jumps in
    between, and no path leads from the site back to it without passing ``begin``. Whether
    something jumps to ``begin`` itself is ``is_joined``."""
    for instruction in function.instructions.values():
        if function.set.is_jump(instruction):
            target = function.set.target(instruction)
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
        function.set.is_jump(instruction) and function.set.target(instruction) == at
        for instruction in function.instructions.values()
    )


def is_written(function: Function, begin: int, end: int, register: str) -> bool:
    return any(
        register in function.set.writes(instruction)
        for at, instruction in function.instructions.items()
        if begin <= at < end
    )


def past_guard(elf: Elf, function: int) -> int:
    """A function's first instruction that does something, by its link-time start."""
    return function + instruction_set(elf).guard_size(elf.read(function, GUARD))


def ends_block(function: Function, instruction: capstone.CsInsn) -> bool:
    code = function.set
    return code.is_jump(instruction) or code.is_call(instruction) or code.is_return(instruction)
