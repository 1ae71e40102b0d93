"""aio_bh_enqueue() and qemu_bh_cancel() in aarch64 code, found by the atomic operations on QEMUBH's
flags: calls of the compiler's helpers (-moutline-atomics). Each takes a value in x0 and a place in
x1, and leaves in x0 what was there before.

What registers hold at such a call is read from the instructions of its basic block alone, which
are run each time that it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import capstone
import numpy as np
from capstone import arm64

from qtrace.binary.arrays import code_arrays
from qtrace.binary.code_aarch64 import BTI, whole
from qtrace.binary.dataflow import Function, callers_of
from qtrace.binary.elf import Elf
from qtrace.binary.emulated import (
    ends_block,
    first_emulated,
    is_joined,
    is_written,
    past_guard,
    runs_once,
)
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.binary.steps_aarch64 import atomic_helper
from qtrace.knowledge import PENDING, SCHEDULED
from qtrace.qemu.aio.flow import Value, argument, follow_from
from qtrace.sites.all_plan import refusal
from qtrace.sites.cancels import CancelSite
from qtrace.sites.enqueue import EnqueueSite, inserts

VALUE, PLACE, RESULT = "x0", "x1", "x0"
# Of QEMUBH's flags, and of what is read of a helper, in bytes.
SIZE, HELPER = 4, 20
STORES = frozenset({arm64.ARM64_INS_STR, arm64.ARM64_INS_STUR})


@dataclass(frozen=True, slots=True)
class _Operation:
    """A call of a helper on QEMUBH's flags.

    Attributes:
        value: that it is given; None where that is not known.
        holders: the registers that hold the bottom half, and keep it over the call.
        is_given: the bottom half is the first argument of the function.
    """

    function: Function
    address: int
    value: int | None
    holders: tuple[str, ...]
    is_given: bool

    @property
    def end(self) -> int:
        return self.address + int(self.function.instructions[self.address].size)


def find_enqueues(module: Module, flags: int) -> list[EnqueueSite]:
    """As ``qtrace.sites.enqueue.find_enqueues``."""
    found = []
    for operation in _operations(module, "set", flags):
        function, at = operation.function, operation.address
        if operation.value is not None and not operation.value & PENDING:
            continue
        if not operation.holders:
            raise refusal(module, f"no register holds the bottom half behind {at:#x}")
        bh = next((r for r in operation.holders if _inserts(operation, r, flags - 8)), "")
        if not bh:
            continue
        if operation.value is None:
            raise refusal(module, f"the flags that are set at {at:#x} are in no register behind it")
        if is_joined(function, operation.end):
            raise refusal(module, f"more than the atomic OR at {at:#x} leads behind it")
        site = _behind(operation, RESULT, bh)
        found.append(EnqueueSite(function, site, bh, operation.value & 0xFF, ""))
    return found


def find_cancels(module: Module, flags: int) -> list[CancelSite]:
    """As ``qtrace.sites.cancels.find_cancels``. Where no register holds the bottom half behind the
    AND, it is the beginning of the function that was given it."""
    found = []
    for operation in _operations(module, "clr", flags):
        function, at = operation.function, operation.address
        if operation.value not in (None, SCHEDULED):
            continue
        if operation.value is None or is_joined(function, operation.end):
            raise refusal(module, f"the atomic AND at {at:#x} cannot be probed behind")
        if operation.holders:
            bh = operation.holders[0]
            found.append(CancelSite(function, _behind(operation, bh), bh))
        elif operation.is_given:
            given = module.elf.architecture.argument_names[0]
            found.append(CancelSite(function, past_guard(module.elf, function.start), given))
        else:
            raise refusal(module, f"no register holds the bottom half behind {at:#x}")
    return found


def _operations(module: Module, operation: str, flags: int) -> list[_Operation]:
    """All of them, by address. Raises ScanFailed."""
    found = []
    helpers = _helpers(module.elf, (operation, SIZE))
    for extent, addresses in callers_of(module.elf, module.frames, helpers).items():
        function = Function(module.elf, *extent)
        for address in addresses:
            instruction = function.instructions.get(address)
            if instruction is not None and function.set.is_call(instruction):
                one = _operation(module, function, address, flags)
                found += [] if one is None else [one]
    return sorted(found, key=lambda one: one.address)


def _helpers(elf: Elf, wanted: tuple[str, int]) -> set[int]:
    """Where the helpers begin that do this."""
    found = set()
    for start, code in code_arrays(elf):
        words = code[: len(code) // 4 * 4].view("<u4")
        # adrp x16, ...; ldrb w16, [x16, ...]
        first = (words[:-1] & 0x9F00001F == 0x90000010) & (words[1:] & 0xFFC003FF == 0x39400210)
        for at in map(int, np.flatnonzero(first)):
            begin = start + 4 * (at - 1 if at and int(words[at - 1]) in BTI else at)
            if atomic_helper(elf.read(begin, HELPER)) == wanted:
                found.add(begin)
    return found


def _operation(module: Module, function: Function, address: int, flags: int) -> _Operation | None:
    """That of a call, None where something else than QEMUBH's flags is changed."""
    begin = _block(function, address)
    known = _registers(module, begin, address)
    place, value = known.get(PLACE), known.get(VALUE)
    if place is None or not place.offset:
        # It comes from another block: one way to there tells enough of what is none of ours.
        elsewhere = _registers(module, function.start, address).get(PLACE)
        if elsewhere is None or elsewhere.offset != flags:
            return None
        raise refusal(module, f"where the flags lie that are changed at {address:#x} is unclear")
    if place.offset != flags:
        return None
    bh = place.plus(-flags)
    names = module.elf.architecture.callee_saved_names
    return _Operation(
        function,
        address,
        value.offset if value is not None and value.root is None else None,
        tuple(name for name in names if known.get(name) == bh),
        begin == function.start and bh == argument(0),
    )


def _registers(module: Module, begin: int, address: int) -> Mapping[str, Value]:
    """What they hold at an instruction, on the first way there from another."""
    program = ModuleDisassembly(module)
    count = (address - begin) // 4 + 1
    for step in follow_from(program, begin + module.bias, count):
        if step.instruction.address == address + module.bias:
            return step.registers
    return {}


def _block(function: Function, address: int) -> int:
    """Where the basic block begins that an instruction is in."""
    begin = address
    while (before := function.instructions.get(begin - 4)) is not None:
        if ends_block(function, before) or is_joined(function, begin):
            break
        begin -= 4
    return begin


def _inserts(operation: _Operation, bh: str, following: int) -> bool:
    """Whether the bottom half is put on a list behind it."""

    def stores(instruction: capstone.CsInsn) -> bool:
        place = instruction.operands[-1] if instruction.operands else None
        return (
            instruction.id in STORES
            and place is not None
            and place.type == arm64.ARM64_OP_MEM
            and place.mem.disp == following
            and whole(str(instruction.reg_name(place.mem.base))) == bh
        )

    return inserts(operation.function, operation.end, bh, stores)


def _behind(operation: _Operation, *kept: str) -> int:
    """The first instruction behind the call that costs one trap, these registers still there."""
    function, begin = operation.function, operation.end
    site = first_emulated(function, begin)
    if site is None or not runs_once(function, begin, site):
        return begin
    return begin if any(is_written(function, begin, site, name) for name in kept) else site
