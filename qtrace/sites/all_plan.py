"""The probes of `--all` for one binary, and whether a running process has the code for them: no
disassembler is needed to."""

from __future__ import annotations

from dataclasses import dataclass

from qtrace.binary.module import Module
from qtrace.errors import ScanFailed
from qtrace.machine.memory import Memory
from qtrace.process.maps import AddressSpace
from qtrace.sites.running_code import code_mismatch, runs_as_in_file


@dataclass(frozen=True, slots=True)
class BottomHalfLayout:
    """Offsets into QEMUBH, in bytes; ``name`` is -1 where it has none."""

    ctx: int
    name: int
    callback: int
    opaque: int
    flags: int


@dataclass(frozen=True, slots=True)
class AllSite:
    """One probe of `--all`.

    Attributes:
        kind: what a hit means: one of ``ARMED`` in qtrace/event_kinds.py.
        where: ``function+0xoffset``, or ``binary@0xaddress`` in a function without a name.
        vaddr: link-time address.
        program: which of the plan's it runs.
        instruction: as the disassembler prints it.
        emulated: the kernel emulates the instruction; else it is single-stepped.
        new_flags: what an enqueue ORs into QEMUBH's flags; 0 when the record has it.
        inlined: its function is none of the event loop's own: it is who schedules or cancels.
        shared: of a return: what was not run passes there, too; such a hit ends no run.
    """

    kind: str
    where: str
    vaddr: int
    program: str
    instruction: str
    emulated: bool
    new_flags: int = 0
    inlined: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class AllPlan:
    """Every probe of `--all` for one binary.

    Attributes:
        programs: by the name of each: the function of probes/all.bpf.c that it is made from, and
            what fills the holes of that (probes/holes.h).
        returns_to: where aio_bh_call() returns to in aio_bh_poll().
        notes: which sites are dear, and what else is to be told.
    """

    sites: tuple[AllSite, ...]
    programs: dict[str, tuple[str, dict[str, int]]]
    layout: BottomHalfLayout
    returns_to: int
    notes: tuple[str, ...]


def refusal(module: Module, why: str) -> ScanFailed:
    """Of a binary in which something was not found."""
    return ScanFailed(f"{module.name} cannot be recorded with --all: {why}", "record without --all")


def modules_cancel(space: AddressSpace) -> bool:
    """Whether a loaded module of this QEMU (block-*.so, hw-*.so) calls qemu_bh_cancel()."""
    return any(
        b"\0qemu_bh_cancel\0" in (module.elf.section(".dynstr") or b"")
        for module in space.modules_in("qemu")
    )


def check_all_sites(plan: AllPlan, module: Module, memory: Memory) -> None:
    """Compare the running code at each site with the file's. Raises CodeMismatch."""
    for site in plan.sites:
        if not runs_as_in_file(module, memory, site.vaddr):
            raise code_mismatch(module, site.vaddr, f"{site.kind}, {site.where}")
