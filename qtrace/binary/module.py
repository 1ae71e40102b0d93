"""An ELF file of a target, with what was read from it so far."""

from __future__ import annotations

from functools import cached_property

from qtrace.binary.cfi import CallFrames
from qtrace.binary.elf import Elf
from qtrace.binary.symbols import SymbolTable, load_symbols


class Module:
    """An ELF file mapped into a process, with what was read from it so far.

    ``bias`` is the difference between run-time and link-time addresses.
    """

    def __init__(self, elf: Elf, bias: int) -> None:
        self.elf = elf
        self.bias = bias
        # Functions that have no symbol, by link-time start: the scan of QEMU's code fills it.
        self.static_names: dict[int, str] = {}

    @property
    def name(self) -> str:
        return self.elf.name

    @cached_property
    def symbols(self) -> SymbolTable:
        return load_symbols(self.elf)

    @cached_property
    def frames(self) -> CallFrames:
        return CallFrames(self.elf)

    def function_name(self, vaddr: int) -> tuple[str, int] | None:
        """Name and offset of the function around a link-time address."""
        found = self.symbols.lookup(vaddr)
        if found is None and self.static_names:
            function = self.frames.function(vaddr)
            if function and function[0] in self.static_names:
                return self.static_names[function[0]], vaddr - function[0]
        return found
