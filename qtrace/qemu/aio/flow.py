"""What registers hold along the paths through a function, in terms of its arguments.

In which register a compiler keeps a value, and whether it spills it, calls the last function by
a jump or keeps a frame pointer, differs from one build of the same QEMU to the next; what is
loaded from where does not.

Made by hand beside ``qtrace.binary.dataflow``: gdb's own Python, which has no capstone, runs this;
and it shows one path, not what all paths agree on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from qtrace.machine.architecture import Architecture
from qtrace.qemu.aio.instructions import Disassembly, Instruction, Operand, Place

WORD = 8

Key = TypeVar("Key", int, str)

# Written without being named, by Intel's names and gdb's.
IMPLICIT = {
    **dict.fromkeys(("cdqe", "cltq", "cwde", "cwtl", "cmpxchg", "lahf", "xlatb"), ("rax",)),
    **dict.fromkeys(("cqo", "cqto", "cdq", "cltd"), ("rdx",)),
    **dict.fromkeys(("mul", "div", "idiv", "imul", "rdtsc", "xgetbv"), ("rax", "rdx")),
    **dict.fromkeys(("mull", "mulq", "divl", "divq", "idivl", "idivq"), ("rax", "rdx")),
    **dict.fromkeys(("cpuid", "rdtscp", "syscall"), ("rax", "rbx", "rcx", "rdx", "r11")),
}
STRING = re.compile(r"(movs|stos|lods|scas|cmps)[bwdlq]$")
READ_ONLY = frozenset({"cmp", "test", "push", "nop", "bt", "endbr64", "prefetcht0", "ucomisd"})


@dataclass(frozen=True)
class Argument:
    """One of those that are passed in registers, from 0 on."""

    number: int


@dataclass(frozen=True)
class Entry:
    """What any other register held when the function was entered."""

    register: str


STACK = Entry("stack pointer")
THREAD = Entry("thread pointer")


@dataclass(frozen=True)
class Loaded:
    """The word at an address."""

    address: Value


@dataclass(frozen=True)
class Returned:
    """What the call at an address returned."""

    call: int


Root = Argument | Entry | Loaded | Returned


@dataclass(frozen=True)
class Value:
    """``root + offset``; a constant, as the address of static data, has no root."""

    root: Root | None
    offset: int = 0

    def plus(self, offset: int) -> Value:
        return Value(self.root, self.offset + offset)

    @property
    def loaded_from(self) -> Value | None:
        """The address that it was loaded from, None when it was not (or was added to since)."""
        return self.root.address if isinstance(self.root, Loaded) and not self.offset else None


def argument(number: int) -> Value:
    """What the function was given."""
    return Value(Argument(number))


def loaded(address: Value) -> Value:
    """The word there."""
    return Value(Loaded(address))


@dataclass(frozen=True)
class Step:
    """An instruction, and what is known before it: what registers hold, by their 64-bit names,
    and the function's own stack, by distance from the stack pointer at its entry."""

    instruction: Instruction
    registers: Mapping[str, Value]
    stack: Mapping[int, Value]

    def address(self, index: int) -> Value | None:
        """Where a memory operand lies; None for any other, and where that is not known."""
        place = self.instruction.place(index)
        return None if place is None else self._address(place)

    def value(self, index: int) -> Value | None:
        """What an operand is worth, None where that is not known."""
        operands = self.instruction.operands
        operand = operands[index] if index < len(operands) else Operand()
        if operand.immediate is not None:
            return Value(None, operand.immediate.value)
        if operand.register is not None:
            return self.registers.get(operand.register.name) if operand.register.size == 8 else None
        address = self.address(index)
        if address is None:
            return None
        slot = _slot(address)
        if slot is not None and (slot in self.stack or slot < 0):
            return self.stack.get(slot)
        return loaded(address)

    def _address(self, place: Place) -> Value | None:
        if place.index:
            return None
        if not place.base:
            thread_local = place.segment == "fs"
            return (
                None
                if place.segment and not thread_local
                else Value(THREAD if thread_local else None, place.offset)
            )
        if place.segment:
            return None
        base = self.registers.get(place.base)
        return None if base is None else base.plus(place.offset)


def compared(step: Step) -> Value | None:
    """Where that lies which a comparison is about: in memory, or loaded before."""
    if step.instruction.mnemonic != "cmp":
        return None
    values = [value for value in (step.value(0), step.value(1)) if value is not None]
    places = (step.address(0), step.address(1), *(value.loaded_from for value in values))
    return next((place for place in places if place is not None), None)


def steps_on(step: Step) -> bool:
    """Whether a register is loaded from what it points to: the way along a list."""
    place = step.instruction.place(1)
    return place is not None and place.base != "" and place.base == step.instruction.register(0)


def follow(program: Disassembly, symbol: str, count: int) -> list[Step]:
    """The steps of a function, in the order of some path through it; empty without the symbol.

    Each instruction is shown once, as the first path finds it that leads there: what a step
    holds is true on that path. Branches that are not taken come first.

    Args:
        count: how many instructions from its start on belong to it at most.
    """
    start = program.address(symbol)
    return [] if start is None else follow_from(program, start, count)


def follow_from(program: Disassembly, start: int, count: int) -> list[Step]:
    """The same of a function that begins at an address."""
    return list(_steps(program.instructions(start, count), program.architecture))


def _at_entry(machine: Architecture) -> dict[str, Value]:
    others = (*machine.callee_saved_names, *machine.caller_saved_names)
    return {
        **{name: Value(Entry(name)) for name in others},
        **{name: argument(number) for number, name in enumerate(machine.argument_names)},
        machine.stack_pointer_name: Value(STACK),
        machine.thread_pointer_name: Value(THREAD),
    }


def _steps(code: list[Instruction], machine: Architecture) -> Iterator[Step]:
    by_address = {i.address: i for i in code}
    todo: list[tuple[int, dict[str, Value], dict[int, Value]]] = []
    if code:
        todo.append((code[0].address, _at_entry(machine), {}))
    while todo:
        at, registers, stack = todo.pop()
        # Each step has its own copy.
        while (instruction := by_address.pop(at, None)) is not None:
            step = Step(instruction, registers, stack)
            yield step
            if instruction.mnemonic.startswith("j"):
                if instruction.mnemonic == "jmp":
                    at = instruction.target
                    continue
                todo.append((instruction.target, registers, stack))
            elif instruction.mnemonic.startswith(("ret", "ud2", "hlt")):
                break
            else:
                registers, stack = _after(step, machine)
            at += instruction.size


def _after(step: Step, machine: Architecture) -> tuple[dict[str, Value], dict[int, Value]]:
    """What is known after an instruction that goes on to the next one."""
    instruction = step.instruction
    registers, stack = dict(step.registers), dict(step.stack)
    mnemonic = instruction.mnemonic
    pointer = registers.get(machine.stack_pointer_name)
    if instruction.is_call:
        for name in machine.caller_saved_names:
            registers.pop(name, None)
        registers[machine.result_name] = Value(Returned(instruction.address))
        return registers, stack
    if mnemonic in ("push", "pop") and pointer is not None:
        moved = pointer.plus(-WORD if mnemonic == "push" else WORD)
        slot = _slot(moved if mnemonic == "push" else pointer)
        if mnemonic == "push":
            _keep(stack, slot, step.value(0))
        else:
            _keep(registers, instruction.register(0), stack.get(slot) if slot is not None else None)
        registers["rsp"] = moved
        return registers, stack
    if mnemonic == "leave":
        frame = registers.get("rbp")
        slot = _slot(frame) if frame is not None else None
        _keep(registers, "rsp", frame.plus(WORD) if frame is not None else None)
        _keep(registers, "rbp", stack.get(slot) if slot is not None else None)
        return registers, stack
    for name in IMPLICIT.get(mnemonic, ()):
        registers.pop(name, None)
    if STRING.match(mnemonic):
        for name in ("rdi", "rsi", "rcx", "rax"):
            registers.pop(name, None)
    # `xchg %ax,%ax` is how gdb prints a nop of two bytes.
    if mnemonic in READ_ONLY or (
        mnemonic == "xchg" and instruction.operands[:1] == instruction.operands[1:]
    ):
        return registers, stack
    result = result_of(step)
    target = instruction.operands[0].register if instruction.operands else None
    address = step.address(0)
    if target is not None:
        _keep(registers, target.name, result if target.size == WORD else None)
    elif address is not None and (slot := _slot(address)) is not None:
        _keep(stack, slot, result)
        if result is None:
            # It may be two words wide.
            stack.pop(slot + WORD, None)
    if mnemonic in ("xchg", "xadd"):
        registers.pop(instruction.register(1), None)
    return registers, stack


def result_of(step: Step) -> Value | None:
    """What an instruction leaves in its first operand, None where that is not known."""
    instruction = step.instruction
    value = step.value(1)
    if instruction.mnemonic in ("mov", "movabs"):
        return value
    if instruction.mnemonic == "lea":
        return step.address(1)
    before = step.value(0)
    adds = instruction.mnemonic == "add"
    if not (adds or instruction.mnemonic == "sub") or value is None or before is None:
        return None
    if value.root is None:
        return before.plus(value.offset if adds else -value.offset)
    return value.plus(before.offset) if adds and before.root is None else None


def _slot(address: Value) -> int | None:
    """The place in the function's own frame or above, None for any other address."""
    return address.offset if address.root == STACK else None


def _keep(where: dict[Key, Value], key: Key | None, value: Value | None) -> None:
    if key is None:
        return
    if value is None:
        where.pop(key, None)
    else:
        where[key] = value
