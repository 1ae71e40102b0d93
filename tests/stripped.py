"""Copies of a QEMU program that lack what others have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

from qtrace.binary.arrays import SYMBOL
from qtrace.sites.scheduler import WELL_KNOWN_NAMES

# st_shndx of a symbol that is another file's.
UNDEFINED = 0


def without_exports(program: Path, copy: Path) -> Path:
    """As built without --enable-modules: .dynsym names only what is taken from libraries."""
    data = bytearray(program.read_bytes())
    with program.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynsym")
        at, size = section["sh_offset"], section["sh_size"]
    table = np.frombuffer(data, SYMBOL, size // SYMBOL.itemsize, at).copy()
    # Variables of libraries have copies in the program, which the loader looks for.
    functions = table["info"] & 0xF == 2
    table["shndx"][functions] = UNDEFINED
    table["value"][functions] = 0
    data[at : at + size] = table.tobytes()
    return _written(copy, bytes(data))


def without_names(program: Path, copy: Path) -> Path:
    """Likewise, and without the names that QEMU gives its bottom halves: as before 6.1."""
    data = without_exports(program, copy).read_bytes()
    for name in WELL_KNOWN_NAMES:
        text = b"\0" + name.encode() + b"\0"
        data = data.replace(text, b"\0" + b"x" * len(name) + b"\0")
    return _written(copy, data)


def with_build_id(program: Path, build_id: str, copy: Path) -> Path:
    """One that claims to be another's build."""
    data = bytearray(program.read_bytes())
    with program.open("rb") as file:
        note = ELFFile(file).get_section_by_name(".note.gnu.build-id")
        end = note["sh_offset"] + note["sh_size"]
    data[end - len(build_id) // 2 : end] = bytes.fromhex(build_id)
    return _written(copy, bytes(data))


def _written(copy: Path, data: bytes) -> Path:
    copy.write_bytes(data)
    copy.chmod(0o755)
    return copy
