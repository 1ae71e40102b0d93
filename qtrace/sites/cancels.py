"""qemu_bh_cancel(), called or inlined: found by the atomic AND of a QEMUBH's flags."""

from __future__ import annotations

import re
from dataclasses import dataclass

from capstone import x86

from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.emulated import first_emulated, is_joined, is_written, runs_once
from qtrace.binary.module import Module
from qtrace.knowledge import SCHEDULED
from qtrace.sites.all_plan import refusal


@dataclass(frozen=True, slots=True)
class CancelSite:
    """A place that each cancelling passes once, and the register that holds the bottom half there.

    ``function`` is the one that the atomic AND is in.
    """

    function: Function
    site: int
    bh: str


def find_cancels(module: Module, flags: int) -> list[CancelSite]:
    """One for each such AND, behind it. Raises ScanFailed.

    Args:
        flags: where QEMUBH has them.
    """
    found = []
    for address in find_ands(module.elf, flags):
        function = _function_at(module, address)
        place = behind(function, address)
        if place is None:
            raise refusal(module, f"the atomic AND at {address:#x} cannot be probed behind")
        found.append(CancelSite(function, *place))
    return found


def _function_at(module: Module, vaddr: int) -> Function:
    """The function that has an instruction. Raises ScanFailed."""
    extent = module.frames.function(vaddr)
    if extent is None:
        raise refusal(module, f"the function at {vaddr:#x} has no unwind rules")
    return Function(module.elf, *extent)


def find_ands(elf: Elf, flags: int) -> list[int]:
    """Addresses at which the bytes read as `lock and dword flags(reg), ~BH_SCHEDULED`.

    Nothing else of QEMU's compiles to that: in Debian's builds it stands in qemu_bh_cancel() alone.
    """
    # lock, REX, 83 /4 with a displacement of one byte, the mask of one byte.
    pattern = re.compile(
        rb"\xf0[\x40-\x4f]?\x83[\x60-\x63\x65-\x67]" + re.escape(bytes([flags, ~SCHEDULED & 0xFF])),
        re.DOTALL,
    )
    hits = []
    for segment in elf.code:
        code = memoryview(elf.data)[segment.offset : segment.offset + segment.filesz]
        hits += [segment.vaddr + found.start() for found in pattern.finditer(code)]
    return hits


def behind(function: Function, address: int) -> tuple[int, str] | None:
    """Where to sit behind such an AND, and the register that holds the bottom half there.

    The AND itself takes no probe: the kernel refuses its prefix. None where it is no instruction,
    or the one behind it takes none either, or is jumped to, too.
    """
    locked = function.instructions.get(address)
    if locked is None or locked.id != x86.X86_INS_AND:
        return None
    bh = str(locked.reg_name(locked.operands[0].mem.base))
    begin = address + locked.size
    if is_joined(function, begin):
        return None
    site = first_emulated(function, begin)
    if site is None or not runs_once(function, begin, site):
        site = begin
    if is_written(function, begin, site, bh):
        site = begin
    instruction = function.instructions.get(site)
    if instruction is None or not function.set.takes_probe(instruction):
        return None
    return site, bh
