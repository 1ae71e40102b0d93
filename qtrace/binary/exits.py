"""Where a function is left: what a probe can sit on instead of a return probe.

A return probe rewrites the return address on the stack, and QEMU's coroutines switch stacks.
The function's own last instructions tell the same: each `ret`, and each jump to another
function with the stack as it was at the entry (a tail call, such as to aio_co_wake()).
"""

from __future__ import annotations

from qtrace.binary.cfi import CallFrames, Rule
from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.emulated import past_guard
from qtrace.machine.architecture import Architecture

WORD = 8


def find_exits(elf: Elf, frames: CallFrames, start: int) -> tuple[int, ...]:
    """Link-time addresses of every instruction that leaves the function for its caller.

    Empty when not every one can be told: an end that shows only sometimes is worse than none.
    At each of them the stack pointer is what it was at the function's first instruction.
    """
    exits: set[int] = set()
    seen: set[int] = set()
    work = [start]
    while work:
        extent = frames.function(work.pop())
        if extent is None:
            return ()
        if extent[0] in seen:
            continue
        seen.add(extent[0])
        function = Function(elf, *extent)
        for address, instruction in function.instructions.items():
            if function.set.is_return(instruction):
                exits.add(address)
                continue
            if not function.set.is_jump(instruction):
                continue
            target = function.set.target(instruction)
            if target is not None and extent[0] <= target < extent[1]:
                continue
            rule = frames.rule(address)
            if rule is None:
                return ()
            if _is_as_entered(rule, elf.architecture):
                if not function.set.always_jumps(instruction):
                    return ()
                exits.add(address)
            elif target is not None:
                # Its own unlikely part, which the compiler has put elsewhere.
                work.append(target)
    # Left where it is entered: it does nothing of its own, and one site has one meaning.
    return () if {start, past_guard(elf, start)} & exits else tuple(sorted(exits))


def _is_as_entered(rule: Rule, machine: Architecture) -> bool:
    """Whether stack pointer and return address are where they were at the function's entry."""
    if machine.pushes_return_address:
        offset, saved = WORD, True
    else:
        offset, saved = 0, machine.return_address not in dict(rule.saved)
    return rule.cfa_register == machine.stack_pointer and rule.cfa_offset == offset and saved
