"""An ELF file of a target, with what was read from it so far."""

from __future__ import annotations

import os
import threading
from functools import cached_property
from weakref import WeakValueDictionary

from qtrace.binary.cfi import CallFrames
from qtrace.binary.elf import Elf
from qtrace.binary.symbols import SymbolTable, load_symbols


class ParsedFile:
    """What is read of an ELF file, the same wherever it is mapped."""

    def __init__(self, elf: Elf) -> None:
        self.elf = elf

    @cached_property
    def symbols(self) -> SymbolTable:
        return load_symbols(self.elf)

    @cached_property
    def frames(self) -> CallFrames:
        return CallFrames(self.elf)


_Identity = tuple[int, int, int, int, str]
_parsed: WeakValueDictionary[_Identity, ParsedFile] = WeakValueDictionary()
_parsing = threading.Lock()


def parse_shared(fd: int, name: str) -> ParsedFile:
    """The file behind a descriptor; once for all processes that run it, while one of them is kept.

    Raises TargetError, UnsupportedBinary.
    """
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, name)
    with _parsing:
        known = _parsed.get(key)
    if known is None:
        # Two may do this at once: whoever waits for a dead file system keeps nobody from it.
        made = ParsedFile(Elf(f"/proc/self/fd/{fd}", name))
        with _parsing:
            known = _parsed.setdefault(key, made)
    return known


class Module:
    """An ELF file mapped into a process, with what was read from it so far.

    ``bias`` is the difference between run-time and link-time addresses.
    """

    def __init__(self, elf: Elf, bias: int, parsed: ParsedFile | None = None) -> None:
        self.elf = elf
        self.bias = bias
        self.parsed = parsed or ParsedFile(elf)
        # Functions that have no symbol, by link-time start: the scan of QEMU's code fills it.
        self.static_names: dict[int, str] = {}

    @property
    def name(self) -> str:
        return self.elf.name

    @property
    def symbols(self) -> SymbolTable:
        return self.parsed.symbols

    @property
    def frames(self) -> CallFrames:
        return self.parsed.frames

    def function_name(self, vaddr: int) -> tuple[str, int] | None:
        """Name and offset of the function around a link-time address."""
        found = self.symbols.lookup(vaddr)
        if found is None and self.static_names:
            function = self.frames.function(vaddr)
            if function and function[0] in self.static_names:
                return self.static_names[function[0]], vaddr - function[0]
        return found
