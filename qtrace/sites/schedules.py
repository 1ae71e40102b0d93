"""Everything in a QEMU binary that schedules a one-shot bottom half, and what is known of it.

That are the calls of aio_bh_schedule_oneshot_full(ctx, cb, opaque, name) and, where the compiler
has put that function into its callers, those of aio_bh_enqueue(bh, flags) (``inlined``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qtrace.binary.cfi import CallFrames
from qtrace.binary.dataflow import Function, arguments, callers_of
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.values import Constant, State, Step, Value
from qtrace.sites.inlined import SCHEDULED_ONESHOT, Enqueue, FreshMemory, find_enqueue, slot
from qtrace.sites.scheduler import NAMED, find_scheduler

Call = tuple[int, Function, State]


@dataclass(frozen=True, slots=True)
class Schedule:
    """One call, or jump, that schedules; what is None is not known or not the same on each way.

    ``fields`` are the offsets of ctx, cb and opaque in the memory that the first argument points
    to; empty where they are the first three arguments themselves.
    """

    address: int
    function: Function
    callee: int
    fields: tuple[int, ...]
    context: Value | None
    callback: Value | None
    name: Value | None


@dataclass(frozen=True, slots=True)
class Schedules:
    """All of a binary: ``scheduler`` and ``found_by`` as in ``Scan``."""

    scheduler: int
    found_by: str
    found: list[Schedule]


def find_schedules(module: Module) -> Schedules:
    """Raises NotQemu, ScanFailed: see ``find_scheduler``."""
    elf, symbols, frames = module.elf, module.symbols, module.frames
    scheduler, found_by = find_scheduler(elf, symbols, frames)
    is_named = found_by == "names" or symbols.address(NAMED) == scheduler
    found = [
        Schedule(
            address, function, scheduler, (), context, callback, name if is_named else None
        )
        for address, function, state in calls_to(elf, frames, {scheduler})
        for context, callback, _opaque, name, *_more in [arguments(elf, state)]
    ]  # fmt: skip
    enqueue = find_enqueue(elf, frames, scheduler, is_named)
    if enqueue is not None:
        # The function itself ends so, too.
        found += [one for one in _inlined(module, enqueue) if one.function.start != scheduler]
    return Schedules(scheduler, found_by, sorted(found, key=lambda one: one.address))


def _inlined(module: Module, enqueue: Enqueue) -> list[Schedule]:
    fields = (enqueue.ctx, enqueue.callback, enqueue.opaque)
    step = FreshMemory(enqueue.size)
    flags = SCHEDULED_ONESHOT.to_bytes(4, "little")
    calls = calls_to(module.elf, module.frames, {enqueue.address}, step, having=flags)
    return [
        Schedule(
            address, function, enqueue.address, fields, slot(state, enqueue.ctx),
            slot(state, enqueue.callback),
            slot(state, enqueue.name) if enqueue.name >= 0 else None,
        )
        for address, function, state in calls
        if state.get("rsi") == Constant(SCHEDULED_ONESHOT)
    ]  # fmt: skip


def calls_to(
    elf: Elf,
    frames: CallFrames,
    targets: Collection[int],
    step: Step | None = None,
    having: bytes = b"",
) -> list[Call]:
    """Every real call (or tail call) to one of the targets, with what is known before it.

    Args:
        step: that of ``Function.states``.
        having: only in functions whose code has these bytes somewhere.
    """
    calls = []
    for extent, addresses in callers_of(elf, frames, targets).items():
        if having not in elf.read(extent[0], extent[1] - extent[0]):
            continue
        function = Function(elf, *extent)
        states = function.states(step)
        calls += [
            (address, function, states.get(address, {}))
            for address in addresses
            if address in function.instructions and function.callee(address) in targets
        ]
    return sorted(calls, key=lambda call: call[0])
