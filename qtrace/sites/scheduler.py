"""aio_bh_schedule_oneshot_full() in a QEMU binary: by its symbol, or by its arguments."""

from __future__ import annotations

from collections.abc import Collection

from qtrace.binary.cfi import CallFrames
from qtrace.binary.dataflow import Function, arguments, callers_of
from qtrace.binary.elf import Elf
from qtrace.binary.instruction_set import instruction_set
from qtrace.binary.symbols import SymbolTable
from qtrace.binary.values import Constant, State
from qtrace.errors import NotQemu, ScanFailed
from qtrace.knowledge import SNAPSHOT_JOBS
from qtrace.process.process import read_version
from qtrace.sites.inlined import enqueues, find_enqueue, memory_step, slots

# The newer of them has a name argument.
NAMED = "aio_bh_schedule_oneshot_full"
SCHEDULERS = (NAMED, "aio_bh_schedule_oneshot")
# Scheduled by way of replay_bh_schedule_oneshot_event() (7.2 and 10.0).
THROUGH_REPLAY = "bdrv_co_drain_bh_cb"
# Names that aio_bh_schedule_oneshot_full() is called with in every QEMU: where a binary
# exports no symbols, the function that gets them all as fourth argument is it.
WELL_KNOWN_NAMES = (
    *SNAPSHOT_JOBS, "job_exit", "aio_wait_bh", "dummy_bh_cb", THROUGH_REPLAY,
    "do_qmp_dispatch_bh",
)  # fmt: skip


def find_scheduler(elf: Elf, symbols: SymbolTable, frames: CallFrames) -> tuple[int, str]:
    """Its link-time address, and how it was found: ``symbol`` or ``names``.

    Raises:
        NotQemu: there is none.
        ScanFailed: it is QEMU's, but has no names; or they lead to more than one function.
    """
    for name in SCHEDULERS:
        address = symbols.address(name)
        if address is not None:
            return address, "symbol"
    address = _scheduler_by_names(elf, frames)
    if address is None and (version := read_version(elf)) and elf.data.find(b"QEMU") >= 0:
        raise ScanFailed(
            f"{elf.name} is a QEMU program ({version}) with neither symbols nor names of bottom "
            "halves in its code",
            "install its debug symbols, or take a QEMU of 6.1 or later, which has such names",
        )
    if address is None:
        raise NotQemu(elf.name)
    return address, "names"


def _scheduler_by_names(elf: Elf, frames: CallFrames) -> int | None:
    """The one function that gets well-known names as its fourth argument; where it is inlined into
    its callers, that which stores its arguments where these store the names.

    Raises ScanFailed when the names lead to more than one.
    """
    callees: dict[int, set[str]] = {}
    enqueues_of: dict[int, set[str]] = {}
    for name in WELL_KNOWN_NAMES:
        for text in _strings(elf, name):
            loads = instruction_set(elf).loads_of(elf, text)
            for extent in {frames.function(at) for at in loads} - {None}:
                function = Function(elf, *(extent or (0, 0)))
                for address, state in function.states(memory_step(elf)).items():
                    callee = function.callee(address)
                    if callee is None:
                        continue
                    if _schedules(elf, state, text):
                        callees.setdefault(callee, set()).add(name)
                    elif enqueues(state) and Constant(text) in slots(state):
                        enqueues_of.setdefault(callee, set()).add(name)
    if callees:
        return _best(elf, callees)
    if not enqueues_of:
        return None
    enqueue = _best(elf, enqueues_of)
    bodies = {
        start
        for start, _end in callers_of(elf, frames, {enqueue})
        if _is_body(elf, frames, start, enqueue)
    }
    return bodies.pop() if len(bodies) == 1 else None


def _schedules(elf: Elf, state: State, text: int) -> bool:
    """Whether the arguments are a callback's and its name; __assert_fail() gets such a name too."""
    _context, callback, _opaque, name = arguments(elf, state)[:4]
    is_code = isinstance(callback, Constant) and elf.is_code(callback.value)
    return is_code and name == Constant(text)


def _is_body(elf: Elf, frames: CallFrames, function: int, enqueue: int) -> bool:
    """Whether it stores all its arguments into the memory that it hands on to be scheduled."""
    found = find_enqueue(elf, frames, function, named=True)
    return found is not None and found.address == enqueue and found.name >= 0


def _best(elf: Elf, found: dict[int, set[str]]) -> int:
    best = sorted(found, key=lambda callee: len(found[callee]), reverse=True)
    if len(best) > 1 and len(found[best[0]]) == len(found[best[1]]):
        raise ScanFailed(
            f"{elf.name} has no symbols, and its code does not tell the scheduling function",
            "install the debug symbols of this QEMU",
        )
    return best[0]


def _strings(elf: Elf, text: str) -> list[int]:
    """Link-time addresses at which exactly this C string starts."""
    needle = b"\0" + text.encode() + b"\0"
    found, at = [], elf.data.find(needle)
    while at >= 0:
        vaddr = elf.vaddr_of(at + 1)
        if vaddr is not None:
            found.append(vaddr)
        at = elf.data.find(needle, at + 1)
    return found


def names_without_schedule(elf: Elf, scheduled: Collection[str]) -> list[str]:
    """Well-known names that a binary has, and that nothing was seen to schedule: where the
    scheduling function was put into its callers that shows on x86-64 alone (``inlined``)."""
    missing = [n for n in WELL_KNOWN_NAMES if n not in scheduled and n != THROUGH_REPLAY]
    return [name for name in missing if _strings(elf, name)]
