"""The build id of a file as it lies mapped in a target's memory.

Made by hand, as gdb's own Python, which has no pyelftools, runs this, too.
"""

from __future__ import annotations

import struct

from qtrace.machine.memory import PAGE, Memory

PT_LOAD, PT_NOTE = 1, 4
NT_GNU_BUILD_ID = 3
MAGIC = b"\x7fELF"
ELF_HEADER, PROGRAM_HEADER = 64, 56


def build_id_at(memory: Memory, base: int) -> str:
    """The build id, in hex, of the ELF file whose beginning is mapped at ``base``; empty where
    that cannot be read, or has none."""
    headers = headers_at(memory, base)
    segments = list(struct.iter_unpack("<IIQQQQQQ", headers[ELF_HEADER:]))
    first = min((s[3] for s in segments if s[0] == PT_LOAD), default=0) & -PAGE
    for kind, _flags, _offset, vaddr, _physical, length, *_rest in segments:
        if kind == PT_NOTE and length < PAGE:
            for note, description in read_notes(memory.read(base + vaddr - first, length), b"GNU"):
                if note == NT_GNU_BUILD_ID:
                    return description.hex()
    return ""


def headers_at(memory: Memory, base: int) -> bytes:
    """The ELF header and the program headers that follow it; empty where they cannot be read."""
    header = memory.read(base, ELF_HEADER)
    if len(header) < ELF_HEADER or header[:4] != MAGIC:
        return b""
    (table,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    if size != PROGRAM_HEADER:
        return b""
    programs = memory.read(base + table, size * count)
    return header + programs if len(programs) == size * count else b""


def read_notes(raw: bytes, owner: bytes) -> list[tuple[int, bytes]]:
    """(type, description) of an owner's notes."""
    found, at = [], 0
    while at + 12 <= len(raw):
        name_size, size, kind = struct.unpack_from("<III", raw, at)
        name = raw[at + 12 : at + 12 + name_size].rstrip(b"\0")
        begin = at + 12 + (name_size + 3 & -4)
        if name == owner:
            found.append((kind, raw[begin : begin + size]))
        at = begin + (size + 3 & -4)
    return found
