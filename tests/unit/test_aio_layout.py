"""QEMU's layout from its own code: every fact, by whichever disassembler."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.qemu.aio.calibration import calibrate
from qtrace.qemu.aio.instructions import (
    Immediate,
    Instruction,
    Operand,
    Place,
    Register,
    parse_att,
)
from qtrace.qemu.aio.layout import Layout

RBX, RAX = Operand(register=Register("rbx", 8)), Operand(register=Register("rax", 8))


@pytest.mark.qemu
def test_every_fact_is_found_in_a_distributions_binary(qemu_binary: Path) -> None:
    layout = calibrate(ModuleDisassembly(Module(Elf(qemu_binary), 0)))
    assert layout.missing() == []
    # QEMU 6.1 to 10.2 alike; of the rest only the order is known.
    assert (layout.bh_next, layout.bh_flags, layout.bh_name) == (0x20, 0x28, 8)
    assert (layout.bh_cb, layout.bh_opaque) == (0x10, 0x18)
    assert layout.ctx_aio_handlers is not None
    assert layout.ctx_bh_list is not None
    assert layout.ctx_aio_handlers < layout.ctx_bh_list
    assert layout.ctx_bh_slice_list == layout.ctx_bh_list + 8
    assert layout.context_tls is not None
    assert layout.context_tls < 0


@pytest.mark.qemu
@pytest.mark.gdb
def test_gdbs_disassembly_tells_the_same(qemu_binary: Path) -> None:
    program = ModuleDisassembly(Module(Elf(qemu_binary), 0))
    assert calibrate(_Gdb(qemu_binary, program)) == calibrate(program)


# In the order of the layout's fields, from the second context to the last of JobDriver.
RECORDED = {
    "8.2.2": Layout(
        0x1930AB8, 0x1931EE8, -0x10, -0x40, 0x195A038, 0x1931E60, "r15", 0xB0, 0xB8, 0x98, 0xD8,
        0x28, 0x20, 0x10, 0x18, 0x40, 0x68, 8, 0x10, 0x38, 0x28, 0x10, 0x50, 0x68, 0xF0, 8, 0x10,
        0x7C, 8, None, -0x1C0, 0x17DE080,
    ),
    "11.1.3": Layout(
        0x1E7F738, 0x1E7F708, -0x160, -8, 0x1E7C150, 0x1E6F7E0, "rbx", 0xB0, 0xB8, 0x98, 0xD8,
        0x28, 0x20, 0x10, 0x18, 0x40, 0x68, 8, 0x10, 0x38, 0x28, 0x10, 0x50, 0x68, 0xF0, 8, 0x10,
        0x7C, 8, None, -0x1C0, 0x1DE1538,
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", RECORDED)
def test_every_fact_is_found_in_code_that_other_compilers_made(build: str) -> None:
    """8.2.2: frame pointers, link-time optimisation. 11.1.3: registers that a caller saves, the
    last call of a function by a jump."""
    program = _Recorded(Path(__file__).parent / "recorded_code" / f"{build}.txt")
    assert calibrate(program) == RECORDED[build]


def test_without_code_every_fact_is_missing_by_name() -> None:
    layout = calibrate(_Nothing())
    assert layout == Layout()
    assert {"main_variable", "ctx_bh_list", "jobs"} <= set(layout.missing())


@pytest.mark.qemu
def test_one_missing_symbol_costs_only_its_own_facts(qemu_binary: Path) -> None:
    program = ModuleDisassembly(Module(Elf(qemu_binary), 0))
    whole = calibrate(program)
    part = calibrate(_Without(program, "qemu_coroutine_entered"))
    assert part.missing() == ["co_caller"]
    assert part.ctx_bh_list == whole.ctx_bh_list


@pytest.mark.parametrize(
    ("text", "mnemonic", "operands"),
    [
        ("mov    0x83fc01(%rip),%rax        # 0x11bfa48", "mov",
         (RAX, Operand(place=Place("", 0x1007 + 0x83FC01)))),
        ("mov    %fs:0xfffffffffffffe98,%rax", "mov",
         (RAX, Operand(place=Place("", -0x168, "", "fs")))),
        ("lock cmpxchg %edx,0x28(%rbx)", "cmpxchg",
         (Operand(place=Place("rbx", 0x28)), Operand(register=Register("rdx", 4)))),
        ("xchg   %rax,0xa8(%rdi)", "xchg", (Operand(place=Place("rdi", 0xA8)), RAX)),
        ("movq   $0x0,0x8(%rsp)", "mov",
         (Operand(place=Place("rsp", 8)), Operand(immediate=Immediate(0)))),
        ("cmpq   $0x0,0x10(%rdi)", "cmp",
         (Operand(place=Place("rdi", 0x10)), Operand(immediate=Immediate(0)))),
        ("call   0x97dfc0 <aio_bh_call>", "call", (Operand(immediate=Immediate(0x97DFC0)),)),
        ("callq  0x97dfc0 <operator new(unsigned long, int)>", "call",
         (Operand(immediate=Immediate(0x97DFC0)),)),
        ("call   *0x10(%rbx)", "call", (Operand(place=Place("rbx", 0x10)),)),
        ("jmp    *%rax", "jmp", (RAX,)),
        ("lea    -0xf8(%rip),%rbx        # 0x84e120", "lea",
         (RBX, Operand(place=Place("", 0x1007 - 0xF8)))),
        ("mov    (%rax,%rcx,8),%rax", "mov", (RAX, Operand(place=Place("rax", 0, "rcx")))),
        ("mov    %al,0x99(%rdx)", "mov",
         (Operand(place=Place("rdx", 0x99)), Operand(register=Register("rax", 1)))),
        ("mov    %r12d,%eax", "mov",
         (Operand(register=Register("rax", 4)), Operand(register=Register("r12", 4)))),
        ("mov    0x1234,%rax", "mov", (RAX, Operand(place=Place("", 0x1234)))),
        ("ret", "ret", ()),
        ("movzbl 0x8(%rsp),%eax", "movzbl",
         (Operand(register=Register("rax", 4)), Operand(place=Place("rsp", 8)))),
        ("", "", ()),
        ("(bad)", "(bad)", ()),
    ],
)  # fmt: skip
def test_gnu_syntax_is_understood(text: str, mnemonic: str, operands: tuple[Operand, ...]) -> None:
    assert parse_att(0x1000, 7, text) == Instruction(0x1000, 7, mnemonic, operands)


class _Nothing:
    architecture = X86_64

    def address(self, symbol: str) -> int | None:
        return None

    def instructions(self, address: int, count: int) -> list[Instruction]:
        return []


class _Without:
    def __init__(self, program: ModuleDisassembly, symbol: str) -> None:
        self._program, self._symbol = program, symbol
        self.instructions = program.instructions
        self.architecture = program.architecture

    def address(self, symbol: str) -> int | None:
        return None if symbol == self._symbol else self._program.address(symbol)


class _Recorded:
    """Code as gdb prints it, of the functions that calibration asks for.

    A line ``symbol: address`` each, then a line per instruction, and its end.
    """

    architecture = X86_64

    def __init__(self, file: Path) -> None:
        self._symbols: dict[str, int] = {}
        self._code: dict[int, list[Instruction]] = {}
        lines: list[tuple[int, str]] = []
        for line in file.read_text().splitlines()[1:]:
            first, _, rest = line.partition(" ")
            if first.endswith(":"):
                self._symbols[first[:-1]] = int(rest, 16)
                lines = []
            else:
                lines.append((int(first, 16), rest))
            if lines and not rest:
                self._code[lines[0][0]] = [
                    parse_att(at, following - at, text)
                    for (at, text), (following, _) in itertools.pairwise(lines)
                ]

    def address(self, symbol: str) -> int | None:
        return self._symbols.get(symbol)

    def instructions(self, address: int, count: int) -> list[Instruction]:
        return self._code[address][:count]


class _Gdb:
    """Code as gdb prints it."""

    architecture = X86_64
    LINE = re.compile(r"\s*0x([0-9a-f]+)(?: <[^>]*>)?:\s*(.*)")

    def __init__(self, binary: Path, program: ModuleDisassembly) -> None:
        self._binary = binary
        self.address = program.address

    def instructions(self, address: int, count: int) -> list[Instruction]:
        gdb = shutil.which("gdb")
        assert gdb is not None
        text = subprocess.run(
            [gdb, "-nx", "-batch", "-iex", "set debuginfod enabled off",
             "-ex", f"x/{count + 1}i {address}", str(self._binary)],
            capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip
        lines = [(int(m[1], 16), m[2]) for m in map(self.LINE.match, text.splitlines()) if m]
        return [
            parse_att(at, following - at, line)
            for (at, line), (following, _) in itertools.pairwise(lines)
        ]
