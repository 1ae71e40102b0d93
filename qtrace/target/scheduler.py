"""aio_bh_schedule_oneshot_full() in a QEMU binary: by its symbol, or by its arguments."""

from __future__ import annotations

import numpy as np

from qtrace.errors import NotQemu, ScanFailed
from qtrace.target.cfi import CallFrames
from qtrace.target.dataflow import Constant, Function, displacements
from qtrace.target.elf import Elf
from qtrace.target.symbols import SymbolTable

# aio_bh_schedule_oneshot_full() has a name argument since 0f08586c71 (6.2).
SCHEDULERS = ("aio_bh_schedule_oneshot_full", "aio_bh_schedule_oneshot")
# Names that aio_bh_schedule_oneshot_full() is called with in every QEMU: where a binary
# exports no symbols, the function that gets them all as fourth argument is it.
WELL_KNOWN_NAMES = (
    "snapshot_save_job_bh", "snapshot_load_job_bh", "snapshot_delete_job_bh", "job_exit",
    "aio_wait_bh", "dummy_bh_cb", "bdrv_co_drain_bh_cb", "do_qmp_dispatch_bh",
)  # fmt: skip


def find_scheduler(elf: Elf, symbols: SymbolTable, frames: CallFrames) -> tuple[int, str]:
    """Its link-time address, and how it was found: ``symbol`` or ``names``.

    Raises:
        NotQemu: there is none.
        ScanFailed: the names lead to more than one function.
    """
    for name in SCHEDULERS:
        address = symbols.address(name)
        if address is not None:
            return address, "symbol"
    address = _scheduler_by_names(elf, frames)
    if address is None:
        raise NotQemu(elf.name)
    return address, "names"


def _scheduler_by_names(elf: Elf, frames: CallFrames) -> int | None:
    """The one function that gets well-known names as its fourth argument.

    Raises ScanFailed when the names lead to more than one.
    """
    callees: dict[int, set[str]] = {}
    for name in WELL_KNOWN_NAMES:
        for text in _strings(elf, name):
            for reference in _lea_references(elf, text):
                extent = frames.function(reference)
                if extent is None:
                    continue
                function = Function(elf, *extent)
                for address, state in function.states().items():
                    target = function.callee(address)
                    if target and state.get("rcx") == Constant(text):
                        callees.setdefault(target, set()).add(name)
    if not callees:
        return None
    best = sorted(callees, key=lambda callee: len(callees[callee]), reverse=True)
    if len(best) > 1 and len(callees[best[0]]) == len(callees[best[1]]):
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


def _lea_references(elf: Elf, target: int) -> list[int]:
    """Addresses of `lea rcx, [rip + target]`: 48 8d 0d, the displacement after it."""
    hits = []
    for segment in elf.code:
        code = np.frombuffer(
            memoryview(elf.data)[segment.offset : segment.offset + segment.filesz], np.uint8
        )
        at = np.flatnonzero((code[:-6] == 0x48) & (code[1:-5] == 0x8D) & (code[2:-4] == 0x0D))
        loads = segment.vaddr + at + 7 + displacements(code, at + 3)
        hits += [int(segment.vaddr + a) for a in at[loads == target]]
    return hits
