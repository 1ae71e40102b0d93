"""What reaches a register is decided over every path, on code assembled on the spot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qtrace.target.cfi import CallFrames
from qtrace.target.dataflow import Constant, Function, Returned, references_to
from qtrace.target.elf import Elf
from qtrace.target.symbols import SymbolTable, load_symbols

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc"
)

PROLOGUE = """
.globl callee
.type callee,@function
callee: .cfi_startproc
 ret
.cfi_endproc
.size callee,.-callee
"""


def build(folder: Path, body: str) -> tuple[Elf, SymbolTable, CallFrames]:
    """Assemble a function ``caller`` with this body into a shared object."""
    source = folder / "code.s"
    source.write_text(
        f".text\n{PROLOGUE}.globl caller\n.type caller,@function\n"
        f"caller: .cfi_startproc\n{body}\n.cfi_endproc\n.size caller,.-caller\n"
        '.section .rodata\none: .string "one"\ntwo: .string "two"\n'
    )
    target = folder / "code.so"
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-nostdlib",
            "-Wl,-Bsymbolic",
            "-Wl,--eh-frame-hdr",
            "-o",
            target,
            source,
        ],
        check=True,
    )
    elf = Elf(target)
    return elf, load_symbols(elf), CallFrames(elf)


def state_at_call(folder: Path, body: str) -> tuple[Elf, dict[str, object]]:
    elf, symbols, _frames = build(folder, body)
    callee, extent = symbols.address("callee"), symbols.extent("caller")
    assert callee is not None
    assert extent is not None
    function = Function(elf, *extent)
    (site,) = [a for a in references_to(elf, [callee]) if extent[0] <= a < extent[1]]
    return elf, dict(function.states()[site])


def test_a_string_address_and_a_copied_register_reach_the_call(tmp_path: Path) -> None:
    elf, state = state_at_call(
        tmp_path, "lea one(%rip), %rbx\n mov %rbx, %rcx\n xor %esi, %esi\n call callee\n ret"
    )
    name = state["rcx"]
    assert isinstance(name, Constant)
    assert elf.c_string(name.value) == "one"
    assert state["rsi"] == Constant(0)


def test_two_paths_that_disagree_leave_the_register_unknown(tmp_path: Path) -> None:
    _elf, state = state_at_call(
        tmp_path,
        "test %edi, %edi\n lea one(%rip), %rcx\n lea two(%rip), %rdx\n je 1f\n"
        " lea two(%rip), %rcx\n1: call callee\n ret",
    )
    assert "rcx" not in state
    assert isinstance(state["rdx"], Constant)


def test_a_call_clobbers_what_the_callee_may_and_returns_in_rax(tmp_path: Path) -> None:
    elf, symbols, _ = build(
        tmp_path,
        "lea one(%rip), %rcx\n lea two(%rip), %rbx\n call callee\n mov %rax, %rdi\n jmp callee",
    )
    callee, extent = symbols.address("callee"), symbols.extent("caller")
    assert callee is not None
    assert extent is not None
    function = Function(elf, *extent)
    first, tail = sorted(a for a in references_to(elf, [callee]) if a >= extent[0])
    assert "rcx" in function.states()[first]
    assert "rcx" not in function.states()[tail]
    assert function.states()[tail]["rdi"] == Returned(callee)
    assert isinstance(function.states()[tail]["rbx"], Constant)


def test_a_loop_that_changes_a_register_makes_it_unknown_at_its_head(tmp_path: Path) -> None:
    _elf, state = state_at_call(
        tmp_path,
        "lea one(%rip), %rcx\n1: call callee\n lea two(%rip), %rcx\n dec %ebx\n jne 1b\n ret",
    )
    assert "rcx" not in state


def test_a_partial_write_forgets_the_whole_register(tmp_path: Path) -> None:
    _elf, state = state_at_call(
        tmp_path, "lea one(%rip), %rcx\n mov $1, %cl\n lea one(%rip), %rsi\n call callee\n ret"
    )
    assert "rcx" not in state
    assert "rsi" in state


def test_bytes_that_only_look_like_a_call_are_not_instructions(tmp_path: Path) -> None:
    # The displacement of the movabs holds `e8` and a displacement that leads to callee.
    elf, symbols, _ = build(tmp_path, "movabs $0x00ffffffe8, %rax\n call callee\n ret")
    callee, extent = symbols.address("callee"), symbols.extent("caller")
    assert callee is not None
    assert extent is not None
    function = Function(elf, *extent)
    real = [a for a in references_to(elf, [callee]) if a in function.instructions]
    assert len(real) == 1
