"""What a register holds at an instruction, decided over the function's control flow.

A value is known only when every path that reaches the instruction agrees on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import capstone

from qtrace.binary.cfi import CallFrames
from qtrace.binary.elf import Elf
from qtrace.binary.instruction_set import instruction_set
from qtrace.binary.values import Argument, State, Step, Value


class Function:
    """One disassembled function: instructions by address, edges between them.

    ``set`` is what they mean.
    """

    def __init__(self, elf: Elf, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.set = instruction_set(elf)
        self.stack_pointer = elf.architecture.stack_pointer_name
        code = elf.read(start, end - start)
        self.instructions = {i.address: i for i in self.set.decoder().disasm(code, start)}
        self._successors: dict[int, list[int]] = {}

    def callee(self, address: int) -> int | None:
        """The target of a direct call, or of a direct jump out of the function (a tail call)."""
        instruction = self.instructions[address]
        if self.set.is_call(instruction):
            return self.set.target(instruction)
        if self.set.is_jump(instruction):
            target = self.set.target(instruction)
            if target is not None and not self.start <= target < self.end:
                return target
        return None

    def calls(self) -> dict[int, int]:
        """The direct calls in it: where each stands and goes to (link-time addresses)."""
        return {
            address: target
            for address, instruction in self.instructions.items()
            if self.set.is_call(instruction)
            and (target := self.set.target(instruction)) is not None
        }

    def successors(self, instruction: capstone.CsInsn) -> list[int]:
        """Where control goes next inside the function."""
        known = self._successors.get(instruction.address)
        if known is None:
            known = self._successors[instruction.address] = self._find_successors(instruction)
        return known

    def _find_successors(self, instruction: capstone.CsInsn) -> list[int]:
        following = instruction.address + instruction.size
        code = self.set
        if code.is_return(instruction) or code.never_returns(instruction):
            return []
        if code.is_jump(instruction):
            target = code.target(instruction)
            inside = [target] if target is not None and target in self.instructions else []
            return inside if code.always_jumps(instruction) else [*inside, following]
        return [following]

    def last_write(self, register: str, before: int, reach: int) -> capstone.CsInsn | None:
        """The nearest instruction above an address that writes a register, within so many bytes.

        Whether a path leads from there, and no other one, is the caller's to know.
        """
        for at in sorted(self.instructions, reverse=True):
            if before - reach <= at < before and register in self.set.writes(self.instructions[at]):
                return self.instructions[at]
        return None

    def states(self, step: Step | None = None, arguments: Iterable[str] = ()) -> dict[int, State]:
        """The known register values before each instruction, joined over all paths.

        Args:
            step: gives the state after one instruction; it may follow more than ``after`` does.
            arguments: registers whose contents at the function's entry are followed, too.
        """
        step = step or self.set.after
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


def _join(one: State, other: State) -> State:
    return {r: v for r, v in one.items() if other.get(r) == v}


def arguments(elf: Elf, state: State) -> list[Value | None]:
    """What the registers of arguments hold, None where that is not known."""
    return [state.get(name) for name in elf.architecture.argument_names]


def callers_of(
    elf: Elf, frames: CallFrames, targets: Collection[int]
) -> dict[tuple[int, int], list[int]]:
    """The functions, by start and end, that may call or jump to one of ``targets``, with the places
    at which their bytes read so: see ``InstructionSet.references_to``."""
    found: dict[tuple[int, int], list[int]] = {}
    for address in instruction_set(elf).references_to(elf, targets):
        extent = frames.function(address)
        if extent is not None:
            found.setdefault(extent, []).append(address)
    return found
