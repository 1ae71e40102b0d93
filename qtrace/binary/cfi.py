"""Unwind rules of one ELF file, decoded only for the functions that are met.

.eh_frame_hdr has a binary search table of every function, so that the first look-up reads
a few bytes; decoding all of QEMU's .eh_frame takes pyelftools 7 s.
"""

from __future__ import annotations

import bisect
import io
import struct
from array import array
from dataclasses import dataclass
from typing import cast

from elftools.dwarf.callframe import FDE, CallFrameInfo, RegisterRule
from elftools.dwarf.structs import DWARFStructs

from qtrace.binary.elf import Elf

# DW_EH_PE_*: the encodings that GNU ld, gold, lld and mold all write.
PCREL_SDATA4, UDATA4, DATAREL_SDATA4 = 0x1B, 0x03, 0x3B


@dataclass(frozen=True, slots=True)
class Rule:
    """How to get from a frame to its caller at one range of addresses.

    CFA = ``cfa_register`` + ``cfa_offset``; each saved register lies at CFA + its offset.
    ``ends`` marks a function that has no caller (_start, a thread's first function).
    """

    cfa_register: int
    cfa_offset: int
    saved: tuple[tuple[int, int], ...]
    ends: bool


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One function's extent and its rules, each from its row's address on."""

    start: int
    end: int
    rows: list[int]
    rules: list[Rule | None]


class CallFrames:
    """The unwind rules of one ELF file, by link-time address."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._return_address = elf.architecture.return_address
        self._base = elf.eh_frame_hdr or 0
        table = _search_table(elf)
        # As distances from there.
        self._starts, self._fdes = table[::2], table[1::2]
        self._decoded: dict[int, _Decoded] = {}

    @property
    def starts(self) -> array[int]:
        """Link-time start addresses of every function, sorted."""
        return array("q", (self._base + start for start in self._starts))

    def function(self, vaddr: int) -> tuple[int, int] | None:
        """Start and end of the function around a link-time address."""
        entry = self._entry(vaddr)
        return None if entry is None else (entry.start, entry.end)

    def rule(self, vaddr: int) -> Rule | None:
        """The rule at a link-time address; None where there is none or it is an expression."""
        entry = self._entry(vaddr)
        if entry is None:
            return None
        return entry.rules[bisect.bisect_right(entry.rows, vaddr) - 1]

    def _entry(self, vaddr: int) -> _Decoded | None:
        index = bisect.bisect_right(self._starts, vaddr - self._base) - 1
        if index < 0:
            return None
        start = self._base + self._starts[index]
        if start not in self._decoded:
            self._decoded[start] = self._decode(start, self._base + self._fdes[index])
        entry = self._decoded[start]
        return entry if vaddr < entry.end else None

    def _decode(self, start: int, fde_address: int) -> _Decoded:
        nothing = _Decoded(start, start, [], [])
        fde_bytes = _record(self._elf, fde_address)
        if len(fde_bytes) < 16:
            return nothing
        cie_address = fde_address + 4 - struct.unpack_from("<i", fde_bytes, 4)[0]
        cie_bytes = _record(self._elf, cie_address)
        if cie_bytes[4:8] != bytes(4):
            return nothing
        # The two records alone, the second pointing to the first: pyelftools decodes whole
        # sections only.
        fde = fde_bytes[:4] + struct.pack("<I", len(cie_bytes) + 4) + fde_bytes[8:]
        stream = cie_bytes + fde
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        try:
            frames = CallFrameInfo(io.BytesIO(stream), len(stream), 0, structs, for_eh_frame=True)
            entry = frames.get_entries()[1]
            if not isinstance(entry, FDE):
                return nothing
            table = entry.get_decoded().table
        except Exception:
            # pyelftools raises whatever damage leads to; a function without rules is an answer.
            return nothing
        base = entry.header["initial_location"]
        rows = [start + row["pc"] - base for row in table]
        end = start + entry.header["address_range"]
        return _Decoded(start, end, rows, [rule_of_row(row, self._return_address) for row in table])


def rule_of_row(row: dict[object, object], return_address: int) -> Rule | None:
    """A row of pyelftools' decoded table as a rule; None when it needs an expression.

    Whether a return address is signed at a row (DW_CFA_AARCH64_negate_ra_state) is left out: taking
    a signature off one that has none changes nothing.

    Args:
        return_address: the column that has it.
    """
    cfa = row["cfa"]
    if getattr(cfa, "expr", None) is not None:
        return None
    saved, ends = [], False
    for register, rule in row.items():
        if not isinstance(register, int) or not isinstance(rule, RegisterRule):
            continue
        if rule.type == RegisterRule.OFFSET:
            saved.append((register, cast(int, rule.arg)))
        elif rule.type == RegisterRule.UNDEFINED and register == return_address:
            ends = True
        elif rule.type not in (RegisterRule.SAME_VALUE, RegisterRule.UNDEFINED):
            return None
    return Rule(int(cfa.reg), int(cfa.offset), tuple(saved), ends)  # type: ignore[attr-defined]


def _record(elf: Elf, vaddr: int) -> bytes:
    head = elf.read(vaddr, 4)
    return elf.read(vaddr, 4 + struct.unpack("<I", head)[0]) if len(head) == 4 else b""


def _search_table(elf: Elf) -> array[int]:
    """Of each function its address and that of its FDE, in turn, sorted, as distances from
    .eh_frame_hdr; empty without a table."""
    nothing = array("i")
    header = elf.eh_frame_hdr
    if header is None:
        return nothing
    raw = elf.read(header, 12)
    if len(raw) < 12 or (raw[0], raw[1], raw[2], raw[3]) != (
        1, PCREL_SDATA4, UDATA4, DATAREL_SDATA4,
    ):  # fmt: skip
        return nothing
    count = struct.unpack_from("<I", raw, 8)[0]
    table = elf.read(header + 12, 8 * count)
    return array("i", table[: len(table) // 8 * 8])
