"""What reaches a register is decided over every path, on code assembled on the spot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qtrace.binary.cfi import CallFrames
from qtrace.binary.code_x86_64 import CodeX86
from qtrace.binary.dataflow import Function
from qtrace.binary.elf import Elf
from qtrace.binary.emulated import is_joined
from qtrace.binary.symbols import SymbolTable, load_symbols
from qtrace.binary.values import Argument, Constant, Returned
from qtrace.sites.enqueue import enqueue_site

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
    (site,) = [a for a in CodeX86().references_to(elf, [callee]) if extent[0] <= a < extent[1]]
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
    first, tail = sorted(a for a in CodeX86().references_to(elf, [callee]) if a >= extent[0])
    assert "rcx" in function.states()[first]
    assert "rcx" not in function.states()[tail]
    assert function.states()[tail]["rdi"] == Returned(callee)
    assert isinstance(function.states()[tail]["rbx"], Constant)


def test_an_argument_is_followed_until_something_else_takes_its_register(tmp_path: Path) -> None:
    elf, symbols, _frames = build(
        tmp_path,
        "mov %rdi, %rbx\n mov %rsi, %r12\n call *%rdx\n mov %rbx, (%rax)\n"
        " mov %eax, %r12d\n call callee\n ret",
    )
    extent = symbols.extent("caller")
    assert extent is not None
    function = Function(elf, *extent)
    states = function.states(arguments=["rdi", "rsi"])
    (store,) = (i for i in function.instructions.values() if i.op_str.startswith("qword ptr [rax]"))
    assert states[store.address] == {
        "rbx": Argument("rdi"), "r12": Argument("rsi"),
    }  # fmt: skip
    (site,) = [
        a for a in CodeX86().references_to(elf, [symbols.address("callee") or 0]) if a >= extent[0]
    ]
    assert states[site] == {"rbx": Argument("rdi")}
    assert "rbx" not in function.states()[site]


def test_the_last_write_of_a_register_is_the_nearest_within_reach(tmp_path: Path) -> None:
    elf, symbols, _frames = build(
        tmp_path, "mov %rsi, %rdi\n or $3, %edx\n mov %edx, %ecx\n call callee\n ret"
    )
    extent = symbols.extent("caller")
    assert extent is not None
    function = Function(elf, *extent)
    moved, ored, _copied, called, _end = function.instructions.values()
    assert function.last_write("rdx", called.address, reach=24).address == ored.address
    assert function.last_write("rdi", called.address, reach=24).address == moved.address
    assert function.last_write("rdi", called.address, reach=called.address - ored.address) is None


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
    real = [a for a in CodeX86().references_to(elf, [callee]) if a in function.instructions]
    assert len(real) == 1


# aio_bh_enqueue() of 11.1: the flags at 0x28 are ORed with esi, and it is inserted at the end.
ENQUEUE = """
 mov (%rdi),%rcx
 mov 0x28(%rdi),%eax
 or $1,%esi
1: mov %eax,%r8d
 mov %eax,%edx
 or %esi,%r8d
 lock cmpxchg %r8d,0x28(%rdi)
 jne 1b
 and $1,%edx
 je 3f
2: mov %rcx,%rdi
 call callee
 .skip 60,0x90
 ret
3: mov 0xb0(%rcx),%rax
"""
INSERTS = """
 mov %rax,0x20(%rdi)
 lock cmpxchg %rdi,0xb0(%rcx)
 jne 3b
 jmp 2b
"""


@pytest.mark.parametrize(
    ("insertion", "found"),
    [
        (INSERTS, True),
        (" mov %rcx,%rdi\n" + INSERTS, False),
        (INSERTS.replace("0x20", "0x40"), False),
    ],
    ids=["inserts", "another-pointer", "another-field"],
)
def test_an_insertion_is_found_where_the_code_jumps_to_it(
    insertion: str, found: bool, tmp_path: Path
) -> None:
    elf, symbols, _frames = build(tmp_path, ENQUEUE + insertion)
    extent = symbols.extent("caller")
    assert extent is not None
    function = Function(elf, *extent)
    exchange = next(a for a, i in function.instructions.items() if i.mnemonic == "lock cmpxchg")
    site = enqueue_site(function, exchange, 0x28)
    assert (site is not None) is found
    if site is not None:
        # The branch behind the retry: the kernel emulates it, and rax has the old flags still.
        assert function.instructions[site[0]].mnemonic == "je"
        assert site[1:] == ("rdi", 0, "rsi")


@pytest.mark.parametrize(
    ("skips", "joined"), [("jne 1f", True), ("jne 2f", False)], ids=["right-behind", "elsewhere"]
)
def test_what_stands_behind_a_call_may_be_jumped_to_as_well(
    tmp_path: Path, skips: str, joined: bool
) -> None:
    """As in aio_bh_poll(), which jumps over its call for a bottom half that was cancelled: a
    probe there would tell of a return that no run came before."""
    body = f"test %edi,%edi\n{skips}\ncall callee@PLT\n1: test %eax,%eax\n2: je 3f\nnop\n3: ret"
    elf, symbols, frames = build(tmp_path, body)
    extent = frames.function(symbols.address("caller") or 0) or (0, 0)
    function = Function(elf, *extent)
    (call,) = function.calls()
    assert is_joined(function, call + function.instructions[call].size) is joined
