"""Unwind rules of TCG's translated code, from QEMU's own memory.

QEMU describes its code_gen_buffer to debuggers by gdb's JIT interface: the exported
``__jit_debug_descriptor`` leads to a small ELF file in memory, whose .debug_frame has the
one frame layout that all translated code shares (tcg_register_jit()).
Without it a chain would end below the vCPU's cpu_exec().
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from qtrace.binary.cfi import Rule, rule_of_row
from qtrace.binary.module import Module
from qtrace.machine.memory import Memory

DESCRIPTOR = "__jit_debug_descriptor"
MAX_ENTRIES, MAX_IMAGE = 16, 1 << 20


@dataclass(frozen=True, slots=True)
class JitCode:
    """A range of run-time addresses of translated code, and the rule that holds all over it."""

    start: int
    end: int
    rule: Rule


def read_jit_code(memory: Memory, module: Module) -> list[JitCode]:
    """What the process's JIT descriptor lists; empty without TCG, or when it is not readable."""
    address = module.symbols.address(DESCRIPTOR)
    raw = memory.read(address + module.bias, 24) if address else b""
    if len(raw) < 24:
        return []
    _version, _action, _relevant, entry = struct.unpack("<IIQQ", raw)
    return_address = module.elf.architecture.return_address
    found: list[JitCode] = []
    for _ in range(MAX_ENTRIES):
        raw = memory.read(entry, 32) if entry else b""
        if len(raw) < 32:
            break
        entry, _previous, image, size = struct.unpack("<QQQQ", raw)
        if size <= MAX_IMAGE:
            found += _of_image(memory.read(image, size), return_address)
    return found


def _of_image(image: bytes, return_address: int) -> list[JitCode]:
    try:
        dwarf = ELFFile(io.BytesIO(image)).get_dwarf_info()
        entries = dwarf.CFI_entries() if dwarf.has_CFI() else []
        frames = [entry for entry in entries if isinstance(entry, FDE)]
        found = []
        for frame in frames:
            # One row: the prologue is no part of the description, the body has one layout.
            rule = rule_of_row(frame.get_decoded().table[-1], return_address)
            start = frame.header["initial_location"]
            if rule is not None:
                found.append(JitCode(start, start + frame.header["address_range"], rule))
    except (ELFError, DWARFError, AssertionError, KeyError, IndexError, ValueError):
        return []
    return found
