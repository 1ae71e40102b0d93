"""Names of functions: .dynsym, .symtab, .gnu_debugdata and separate debug files.

A distribution's QEMU is stripped, but exports some 19,000 functions in .dynsym (its
modules link against them); static ones are named by ``scan`` where the code tells.
"""

from __future__ import annotations

import lzma
import struct
from array import array
from bisect import bisect_left, bisect_right
from pathlib import Path

from qtrace.binary.elf import Elf
from qtrace.errors import QtraceError

# An entry: name, info, other, section index, value, size.
ENTRY = 24
# Where a name begins among all of them, and the last place that there can be.
PLACE, LAST = struct.Struct("<I"), 0xFFFFFFFF
STT_OBJECT, STT_FUNC, STT_GNU_IFUNC = 1, 2, 10
WANTED = frozenset({STT_OBJECT, STT_FUNC, STT_GNU_IFUNC})
DEBUG_FOLDER = Path("/usr/lib/debug/.build-id")


class SymbolTable:
    """The functions and variables of one ELF file.

    Columns, not an object per symbol: a QEMU has 20,000.
    """

    def __init__(self, tables: list[tuple[bytes, bytes]]) -> None:
        values, sizes, places = array("Q"), array("Q"), array("I")
        self._strings = b""
        keys: list[int] = []
        for raw, strings in tables:
            whole = raw[: len(raw) // ENTRY * ENTRY]
            words, halves, base = array("Q", whole), array("I", whole), len(self._strings)
            columns = zip(
                words[1::3], whole[4::ENTRY], array("H", whole)[3::12], halves[::6], strict=True
            )
            # Local aliases come before exported names, so that a look-up meets the latter last.
            keys += [
                (value << 4 | info >> 4) << 32 | number
                for number, (value, info, section, name) in enumerate(columns, len(places))
                if value and section and info & 0xF in WANTED and name < len(strings)
            ]
            places.extend(min(base + name, LAST) for name in halves[::6])
            sizes.extend(words[2::3])
            self._strings += strings + b"\0"
        keys.sort()
        order = [key & LAST for key in keys]
        values.extend(key >> 36 for key in keys)
        self._values, self._sizes = values, array("Q", map(sizes.__getitem__, order))
        self._places = array("I", map(places.__getitem__, order)).tobytes()

    def __len__(self) -> int:
        return len(self._values)

    def address(self, name: str) -> int | None:
        """The link-time address of a function or variable, None when it has no symbol."""
        # A name may be the tail of a longer one (linkers share strings): try each place.
        wanted = name.encode() + b"\0"
        at = self._strings.find(wanted)
        while at >= 0:
            index = self._last_at(at)
            if index is not None:
                return self._values[index]
            at = self._strings.find(wanted, at + 1)
        return None

    def _last_at(self, place: int) -> int | None:
        """The last symbol whose name begins there. Searched for in bytes: a dictionary would take
        some MB as long as the table is there."""
        wanted = PLACE.pack(place)
        at = self._places.rfind(wanted)
        while at >= 0 and at % PLACE.size:
            at = self._places.rfind(wanted, 0, at + PLACE.size - 1)
        return at // PLACE.size if at >= 0 else None

    def by_name(self) -> dict[str, int]:
        """The link-time addresses of all of them: for whoever asks for thousands."""
        return {self._name(index): value for index, value in enumerate(self._values)}

    def extent(self, name: str) -> tuple[int, int] | None:
        """A function's link-time start and end, None when it has no (sized) symbol."""
        start = self.address(name)
        if start is None:
            return None
        alike = slice(bisect_left(self._values, start), bisect_right(self._values, start))
        size = max(self._sizes[alike])
        return (start, start + size) if size else None

    def lookup(self, vaddr: int) -> tuple[str, int] | None:
        """The function that covers a link-time address, with the offset into it."""
        index = bisect_right(self._values, vaddr) - 1
        if index < 0:
            return None
        offset = vaddr - self._values[index]
        if offset >= max(self._sizes[index], 1):
            return None
        return self._name(index), offset

    def _name(self, index: int) -> str:
        (start,) = PLACE.unpack_from(self._places, PLACE.size * index)
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
