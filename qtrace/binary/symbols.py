"""Names of functions: .dynsym, .symtab, .gnu_debugdata and separate debug files.

A distribution's QEMU is stripped, but exports some 19,000 functions in .dynsym (its
modules link against them); static ones are named by ``scan`` where the code tells.
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qtrace.binary.elf import Elf
from qtrace.errors import QtraceError

SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"),
     ("size", "<u8")]
)  # fmt: skip
STT_OBJECT, STT_FUNC, STT_GNU_IFUNC = 1, 2, 10
DEBUG_FOLDER = Path("/usr/lib/debug/.build-id")


class SymbolTable:
    """The functions and variables of one ELF file.

    Looks names up without making a Python object per symbol: a QEMU has 20,000.
    """

    def __init__(self, tables: list[tuple[bytes, bytes]]) -> None:
        parts: list[npt.NDArray[np.void]] = []
        strings = b""
        for raw, names in tables:
            table = np.frombuffer(raw[: len(raw) // SYMBOL.itemsize * SYMBOL.itemsize], SYMBOL)
            kind = table["info"] & 0xF
            wanted = np.isin(kind, (STT_OBJECT, STT_FUNC, STT_GNU_IFUNC))
            table = table[wanted & (table["shndx"] != 0) & (table["value"] != 0)].copy()
            table["name"] += len(strings)
            parts.append(table)
            strings += names + b"\0"
        table = np.concatenate(parts) if parts else np.empty(0, SYMBOL)
        # Local aliases come before exported names, so that a look-up meets the latter last.
        order = np.lexsort((table["info"] >> 4, table["value"]))
        self._table = table[order]
        self._values = np.ascontiguousarray(self._table["value"])
        self._strings = strings

    def __len__(self) -> int:
        return len(self._table)

    def address(self, name: str) -> int | None:
        """The link-time address of a function or variable, None when it has no symbol."""
        # A name may be the tail of a longer one (linkers share strings): try each place.
        for match in re.finditer(re.escape(name.encode()) + b"\0", self._strings):
            hits = np.flatnonzero(self._table["name"] == match.start())
            if len(hits):
                return int(self._values[hits[-1]])
        return None

    def by_name(self) -> dict[str, int]:
        """The link-time addresses of all of them: for whoever asks for thousands."""
        return {self._name(symbol): int(symbol["value"]) for symbol in self._table}

    def extent(self, name: str) -> tuple[int, int] | None:
        """A function's link-time start and end, None when it has no (sized) symbol."""
        start = self.address(name)
        if start is None:
            return None
        size = int(self._table["size"][self._values == start].max())
        return (start, start + size) if size else None

    def lookup(self, vaddr: int) -> tuple[str, int] | None:
        """The function that covers a link-time address, with the offset into it."""
        index = int(np.searchsorted(self._values, vaddr, side="right")) - 1
        if index < 0:
            return None
        symbol = self._table[index]
        offset = vaddr - int(symbol["value"])
        if offset >= max(int(symbol["size"]), 1):
            return None
        return self._name(symbol), offset

    def _name(self, symbol: np.void) -> str:
        start = int(symbol["name"])
        end = self._strings.index(b"\0", start)
        # .symtab spells versioned names "name@GLIBC_2.2.5".
        name = self._strings[start:end].partition(b"@")[0]
        return name.decode("utf-8", "backslashreplace")


def load_symbols(elf: Elf) -> SymbolTable:
    """Every function name there is for this file; empty when there is none."""
    tables = list(_tables(elf))
    file = debug_file(elf)
    if file is not None:
        tables += _tables_of_debug_file(file)
    packed = elf.section(".gnu_debugdata")
    if packed:
        tables += _tables_of_debug_data(packed)
    return SymbolTable(tables)


def debug_file(elf: Elf) -> Path | None:
    """The installed debug file that belongs to a file's build id."""
    if not elf.build_id:
        return None
    path = DEBUG_FOLDER / elf.build_id[:2] / f"{elf.build_id[2:]}.debug"
    return path if path.exists() else None


def _tables(elf: Elf) -> list[tuple[bytes, bytes]]:
    found = []
    for symbols, strings in ((".dynsym", ".dynstr"), (".symtab", ".strtab")):
        raw, names = elf.section(symbols), elf.section(strings)
        if raw and names:
            found.append((raw, names))
    if not found:
        dynamic = elf.dynamic_symbols()
        if dynamic:
            found.append(dynamic)
    return found


def _tables_of_debug_file(path: Path) -> list[tuple[bytes, bytes]]:
    try:
        return _tables(Elf(path))
    except QtraceError:
        return []


def _tables_of_debug_data(packed: bytes) -> list[tuple[bytes, bytes]]:
    """.gnu_debugdata (Fedora's MiniDebugInfo) is an xz-packed ELF file with a .symtab."""
    import tempfile

    try:
        unpacked = lzma.decompress(packed)
    except lzma.LZMAError:
        return []
    with tempfile.NamedTemporaryFile(prefix="qtrace-debugdata-") as file:
        file.write(unpacked)
        file.flush()
        return _tables_of_debug_file(Path(file.name))
