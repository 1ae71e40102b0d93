"""Names that functions hand on as ``__func__``: likely their own.

assert(), error_setg() and QOM's casts pass the name of the function that they stand in. One that
was inlined passes its own: a name that several functions pass, or that is another function's, is
none. What remains is right more than nineteen times of twenty, and always shown as likely.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from qtrace.binary.arrays import SYMBOL, code_arrays
from qtrace.binary.code_x86_64 import displacements
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.machine.arch_x86_64 import X86_64

Addresses = npt.NDArray[np.int64]

# Who takes ``__func__`` as fourth argument, and who as fifth; the first two are the C library's
# and glib's (assert.h, gtestutils.h), the rest QEMU's (qapi/error.h, qom/object.h).
FOURTH = (
    "__assert_fail", "g_assertion_message_expr", "error_setg_internal",
    "error_setg_errno_internal", "error_setg_file_open_internal",
)  # fmt: skip
FIFTH = ("object_dynamic_cast_assert", "object_class_dynamic_cast_assert")
# `lea reg, [rip + x]` of the fourth argument and of the fifth.
LEA = {FOURTH: b"\x48\x8d\x0d", FIFTH: b"\x4c\x8d\x05"}
LEA_SIZE = 7
# Bytes of code before a call in which its arguments are set.
BEFORE_CALL = 64
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{3,}\Z")
# R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT.
IMPORTS = (6, 7)
RELA = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])


def passed_names(module: Module) -> dict[int, str]:
    """Names by the functions' link-time starts, those with symbols included. Empty where the code
    tells none, and of other processors than x86-64."""
    return _Binary(module).names() if module.elf.architecture is X86_64 else {}


class _Binary:
    def __init__(self, module: Module) -> None:
        self._elf = module.elf
        self._symbols = module.symbols
        self._starts: Addresses = np.asarray(module.frames.starts, np.int64)
        self._code = code_arrays(module.elf)

    def names(self) -> dict[int, str]:
        used: dict[int, set[int]] = {}
        for receivers, lea in LEA.items():
            for function, text in self._handed_on(receivers, lea):
                used.setdefault(text, set()).add(function)
        owners = self._owners({f for functions in used.values() for f in functions})
        names = {text: self._elf.c_string(text) or "" for text in used}
        # A header's function has a text of its own in each file that it was inlined in.
        copies = Counter(names.values())
        symbols = self._symbols.by_name()
        passed: dict[int, set[str]] = {}
        sure: dict[int, set[str]] = {}
        for text, functions in used.items():
            whole = {owners.get(function, function) for function in functions}
            if not IDENTIFIER.match(names[text]) or copies[names[text]] > 1:
                continue
            exported = symbols.get(names[text])
            for function in whole:
                passed.setdefault(function, set()).add(names[text])
                if len(whole) == 1 and exported in (None, function):
                    sure.setdefault(function, set()).add(names[text])
        return {f: next(iter(n)) for f, n in sure.items() if len(passed[f]) == 1}

    def _handed_on(self, receivers: tuple[str, ...], lea: bytes) -> Iterator[tuple[int, int]]:
        """The functions (or parts of one) that hand on a constant there, and its address."""
        targets, slots = self._receivers(receivers)
        for base, code in self._code:
            sites = base + self._calls(base, code, targets, slots)
            leas = _find(code, lea)
            text = base + leas + LEA_SIZE + displacements(code, leas + 3)
            places = base + leas
            # The nearest one before each call.
            index = np.searchsorted(places, sites) - 1
            near = (index >= 0) & (sites - places[np.maximum(index, 0)] <= BEFORE_CALL)
            for site, at in zip(sites[near], index[near], strict=True):
                function = self._part_of(int(site))
                if function == self._part_of(int(places[at])):
                    yield function, int(text[at])

    def _part_of(self, address: int) -> int:
        """The start of what .eh_frame takes for a function around an address."""
        return int(self._starts[np.searchsorted(self._starts, address, side="right") - 1])

    def _receivers(self, names: tuple[str, ...]) -> tuple[Addresses, Addresses]:
        """Where they lie: their own addresses and those of their PLT stubs, and the slots of the
        global offset table that lead to them."""
        addresses = [a for name in names if (a := self._symbols.address(name))]
        slots = [slot for slot, name in _imports(self._elf) if name in names]
        stubs: list[int] = []
        for base, code in self._code:
            # jmp [rip + x]; endbr64 or a prefix may stand before it.
            jumps = _find(code, b"\xff\x25")
            goes_to = base + jumps + 6 + displacements(code, jumps + 2)
            for jump in base + jumps[np.isin(goes_to, slots)]:
                stubs += [int(jump) - back for back in (0, 1, 4, 5)]
        return np.array(addresses + stubs, np.int64), np.array(slots, np.int64)

    def _calls(
        self, base: int, code: npt.NDArray[np.uint8], targets: Addresses, slots: Addresses
    ) -> Addresses:
        """Offsets of the calls, and jumps in place of one, to any of them."""
        direct = np.flatnonzero((code[:-5] & 0xFE) == 0xE8).astype(np.int64)
        goes_to = base + direct + 5 + displacements(code, direct + 1)
        indirect = _find(code, b"\xff\x15")
        leads_to = base + indirect + 6 + displacements(code, indirect + 2)
        found = [direct[np.isin(goes_to, targets)], indirect[np.isin(leads_to, slots)]]
        return np.sort(np.concatenate(found))

    def _owners(self, parts: set[int]) -> dict[int, int]:
        """The function that each cold part belongs to: the only one that jumps into it by a
        condition. (Compilers put what hardly ever runs elsewhere.)"""
        unnamed = np.array(sorted(p for p in parts if self._symbols.lookup(p) is None), np.int64)
        found: dict[int, set[int]] = {}
        for base, code in self._code:
            at = _find(code, b"\x0f")
            at = at[(code[np.minimum(at + 1, len(code) - 1)] & 0xF0) == 0x80]
            at = at[at < len(code) - 6]
            goes_to = base + at + 6 + displacements(code, at + 2)
            index = np.searchsorted(self._starts, goes_to, side="right") - 1
            part = self._starts[np.maximum(index, 0)]
            wanted = np.isin(part, unnamed)
            for jump, into in zip(base + at[wanted], part[wanted], strict=True):
                function = self._part_of(int(jump))
                if function != into:
                    found.setdefault(int(into), set()).add(function)
        return {part: owners.pop() for part, owners in found.items() if len(owners) == 1}


def _find(code: npt.NDArray[np.uint8], pattern: bytes) -> Addresses:
    """Offsets of these bytes, with room for a displacement behind them."""
    last = len(code) - 8
    hits = code[:last] == pattern[0]
    for number, byte in enumerate(pattern[1:], 1):
        hits = hits & (code[number : last + number] == byte)
    return np.flatnonzero(hits).astype(np.int64)


def _imports(elf: Elf) -> Iterator[tuple[int, str]]:
    """The slots of the global offset table, and the functions that they lead to."""
    names, strings = elf.section(".dynsym") or b"", elf.section(".dynstr") or b""
    symbols = np.frombuffer(names[: len(names) // SYMBOL.itemsize * SYMBOL.itemsize], SYMBOL)
    for section in (".rela.dyn", ".rela.plt"):
        raw = elf.section(section) or b""
        entries = np.frombuffer(raw[: len(raw) // RELA.itemsize * RELA.itemsize], RELA)
        imports = np.isin(entries["info"] & 0xFFFFFFFF, IMPORTS)
        for slot, info in zip(entries["offset"][imports], entries["info"][imports], strict=True):
            number = int(info) >> 32
            if number < len(symbols):
                at = int(symbols[number]["name"])
                name = strings[at : strings.find(b"\0", at)]
                yield int(slot), name.decode("ascii", "replace")
