"""Machine instructions as calibration needs them, whoever disassembled them.

Outside gdb capstone serves them (``qtrace.binary.module_code``), inside gdb its own
``architecture().disassemble()``, whose text ``parse_att()`` reads. Operands stand in Intel's
order: the destination first.

The words are x86-64's: they can say what other processors do, in several steps where it takes them
(``qtrace.binary.steps_aarch64``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from qtrace.machine.architecture import Architecture


@dataclass(frozen=True)
class Register:
    """A register by the 64-bit name of the one that it is (part of), and its width in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Immediate:
    """A number; of a direct call or jump, the address it goes to."""

    value: int


@dataclass(frozen=True)
class Place:
    """Memory: ``[base + index + offset]``.

    ``base`` and ``index`` are registers or empty. An address relative to rip is absolute
    here: no base, and ``offset`` is the address. ``segment`` is ``fs`` for thread-local data
    (then ``offset`` is signed, from the thread pointer on), else empty.
    """

    base: str
    offset: int
    index: str = ""
    segment: str = ""

    @property
    def absolute(self) -> int:
        """The address of static data, 0 for any other place."""
        return 0 if self.base or self.index or self.segment else self.offset


@dataclass(frozen=True)
class Operand:
    """Exactly one of the three is set."""

    register: Register | None = None
    immediate: Immediate | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Instruction:
    """``mnemonic`` is Intel's, without prefixes and AT&T's size suffix (``mov``, ``cmpxchg``)."""

    address: int
    size: int
    mnemonic: str
    operands: tuple[Operand, ...]

    @property
    def is_call(self) -> bool:
        return self.mnemonic == "call"

    @property
    def target(self) -> int:
        """Where a direct call or jump goes, 0 for anything else."""
        if self.is_call or self.mnemonic.startswith("j"):
            first = self.operands[0].immediate if self.operands else None
            return first.value if first else 0
        return 0

    def register(self, index: int) -> str:
        """The 64-bit name of a register operand, empty when it is none."""
        operand = self.operands[index] if index < len(self.operands) else Operand()
        return operand.register.name if operand.register else ""

    def place(self, index: int) -> Place | None:
        """A memory operand, None when it is none."""
        return self.operands[index].place if index < len(self.operands) else None


class Disassembly(Protocol):
    """The code of one QEMU. All addresses are run-time ones."""

    @property
    def architecture(self) -> Architecture:
        """The processor that it is for."""

    def address(self, symbol: str) -> int | None:
        """The address of a function or variable, None when it has no symbol."""

    def instructions(self, address: int, count: int) -> list[Instruction]:
        """Up to ``count`` instructions in a row; fewer where the bytes are no code."""

    def is_variable(self, address: int) -> bool:
        """Whether the program itself may write there: not so what the dynamic linker fills in, as
        the global offset table, through which code reaches what another file may have."""


_WORDS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_REGISTERS = {
    **{f"r{w}": Register(f"r{w}", 8) for w in _WORDS},
    **{f"e{w}": Register(f"r{w}", 4) for w in _WORDS},
    **{w: Register(f"r{w}", 2) for w in _WORDS},
    **{f"{c}{h}": Register(f"r{c}x", 1) for c in "abcd" for h in "lh"},
    **{f"{w}l": Register(f"r{w}", 1) for w in ("si", "di", "bp", "sp")},
    **{f"r{n}{s}": Register(f"r{n}", size) for n in range(8, 16)
       for s, size in (("", 8), ("d", 4), ("w", 2), ("b", 1))},
}  # fmt: skip


def register_of(name: str) -> Register:
    """The register of that name; one that is no general-purpose one keeps its name, size 0."""
    return _REGISTERS.get(name) or Register(name, 0)


def signed(value: int) -> int:
    """A 64-bit displacement as a disassembler prints it (``0xffffffffffffffa0``), with its sign."""
    return value - (1 << 64) if value >= 1 << 63 else value


# What may lose a size suffix, and what only looks as if it could (``call``, ``shl``, ``mul``).
_SUFFIXED = re.compile(r"(mov|cmp|add|sub|and|or|xor|test|lea|xchg|cmpxchg|push|pop)[bwlq]$")
_CALLS = {"callq": "call", "jmpq": "jmp", "retq": "ret"}
_PREFIXES = frozenset({
    "lock", "rep", "repz", "repnz", "notrack", "bnd", "data16", "cs", "ds", "es", "ss", "addr32",
})  # fmt: skip
_NUMBER = re.compile(r"-?(0x[0-9a-f]+|\d+)\Z", re.ASCII)
_PLACE = re.compile(
    r"(?:%(?P<segment>[a-z]s):)?(?P<offset>-?0x[0-9a-f]+|-?\d+)?"
    r"(?:\((?:%(?P<base>\w+))?(?:,%(?P<index>\w+)(?:,\d)?)?\))?\Z"
)


def parse_att(address: int, size: int, text: str) -> Instruction:
    """One line of GNU's AT&T syntax, as gdb prints it by default::

    mov    0x83fc01(%rip),%rax        # 0x11bfa48
    lock cmpxchg %edx,0x28(%rbx)
    call   0x97dfc0 <aio_bh_call>
    """
    code, _, _comment = text.partition("#")
    words = code.split(None, 1)
    while len(words) == 2 and words[0] in _PREFIXES:
        words = words[1].split(None, 1)
    if not words:
        return Instruction(address, size, "", ())
    mnemonic = _CALLS.get(words[0], words[0])
    if _SUFFIXED.match(mnemonic):
        mnemonic = mnemonic[:-1]
    jumps = mnemonic == "call" or mnemonic.startswith("j")
    pieces = _split(words[1] if len(words) == 2 else "")
    operands = [_operand(piece, address + size, jumps) for piece in pieces]
    operands.reverse()
    return Instruction(address, size, mnemonic, tuple(operands))


def _split(text: str) -> Iterator[str]:
    """Operands, separated by the commas outside parentheses; a symbol in <> is left out."""
    depth, piece = 0, ""
    for char in re.sub(r"<[^>]*>", "", text).strip():
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and not depth:
            yield piece.strip()
            piece = ""
        else:
            piece += char
    if piece.strip():
        yield piece.strip()


def _number(text: str) -> int:
    return signed(int(text, 16 if "x" in text else 10))


def _operand(text: str, following: int, jumps: bool) -> Operand:
    if text.startswith("$"):
        number = _NUMBER.match(text[1:])
        return Operand(immediate=Immediate(_number(number[0]))) if number else Operand()
    indirect = text.startswith("*")
    text = text.lstrip("*")
    if text.startswith("%") and ":" not in text and "(" not in text:
        return Operand(register=register_of(text[1:]))
    match = _PLACE.match(text)
    if match is None:
        return Operand()
    offset = _number(match["offset"] or "0")
    if jumps and not indirect and "(" not in text:
        # A direct target is written as memory would be.
        return Operand(immediate=Immediate(offset))
    base, index = match["base"] or "", match["index"] or ""
    if base == "rip":
        return Operand(place=Place("", following + offset))
    segment = match["segment"] if match["segment"] in ("fs", "gs") else ""
    return Operand(place=Place(base, offset, index, segment or ""))
