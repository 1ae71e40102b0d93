"""The sites of `--all`, against the disassembly that objdump makes of the same files."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.machine.arch_x86_64 import X86_64
from qtrace.sites.all_plan import AllPlan
from qtrace.sites.all_sites import plan_all

pytestmark = pytest.mark.qemu

# What arch/x86/kernel/uprobes.c emulates, by mnemonic.
EMULATED = re.compile(r"(push|nop|call|jmp|j[a-z]+)\b")


@cache
def disassembled(program: Path) -> list[tuple[int, str]]:
    shown = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", str(program)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = re.findall(r"^ *([0-9a-f]+):\t(.+?) *$", shown, re.MULTILINE)
    return [(int(address, 16), " ".join(text.split())) for address, text in lines]


@cache
def planned(program: Path) -> AllPlan:
    return plan_all(Module(Elf(program), 0))


@pytest.fixture(params=["qemu-img", "qemu-storage-daemon"])
def program(qemu_binary: Path, request: pytest.FixtureRequest) -> Path:
    return qemu_binary.with_name(str(request.param))


def test_each_site_is_an_instruction_that_the_kernel_emulates(program: Path) -> None:
    code = dict(disassembled(program))
    for site in planned(program).sites:
        assert EMULATED.match(code[site.vaddr]), (site, code[site.vaddr])
        assert site.emulated
    assert planned(program).notes == ()


def test_every_atomic_or_of_the_flags_has_its_site(program: Path) -> None:
    """7.2 inlines aio_bh_enqueue() seven times, 10.0 shares one."""
    listing = disassembled(program)
    ors = [
        index
        for index, (_address, text) in enumerate(listing)
        if re.match(r"lock cmpxchg %e\w\w,0x28\(", text) and listing[index - 1][1].startswith("or ")
    ]
    expected = []
    for index in ors:
        # The retry of the cmpxchg loop comes first; the second branch is the one.
        branches = [a for a, text in listing[index : index + 8] if text.startswith("jne")]
        expected.append(branches[1])
    found = [site.vaddr for site in planned(program).sites if site.kind == "enqueue"]
    assert found == expected


def test_the_end_is_seen_behind_the_one_call(program: Path) -> None:
    listing = disassembled(program)
    (call,) = [i for i, (_a, t) in enumerate(listing) if t.endswith("<aio_bh_call@@Base>")
               and t.startswith("call")]  # fmt: skip
    plan = planned(program)
    assert plan.returns_to == listing[call + 1][0]
    branch = next(a for a, t in listing[call + 1 :] if re.match(r"j\w+ ", t))
    assert [site.vaddr for site in plan.sites if site.kind == "return"] == [branch]


def test_every_call_of_qemu_bh_cancel_has_a_probe(program: Path) -> None:
    calls = [a for a, text in disassembled(program) if "<qemu_bh_cancel@@Base>" in text
             and re.match("call|jmp", text)]  # fmt: skip
    assert [site.vaddr for site in planned(program).sites if site.kind == "cancel"] == calls
    imported = plan_all(Module(Elf(program), 0), imports_cancel=True)
    (inside,) = [site for site in imported.sites if site.kind == "cancel"]
    # A locked instruction takes no probe: the one behind it does, dearly.
    assert not inside.emulated
    assert inside.where == "qemu_bh_cancel+0x5"
    assert imported.notes


def test_the_layout_is_that_of_debians_builds(program: Path) -> None:
    layout = planned(program).layout
    assert (layout.ctx, layout.name, layout.callback, layout.opaque, layout.flags) == (
        0x00, 0x08, 0x10, 0x18, 0x28,
    )  # fmt: skip
    # field notes: at aio_bh_call+0 aio_bh_poll()'s caller is at rsp+0x50, aio_poll()'s at +0x100.
    _function, filling = planned(program).programs["run"]
    sp = X86_64.register_offset("rsp")
    assert [(filling[f"{name}_CALLER"], filling[f"{name}_CALLER_OFFSET"])
            for name in ("POLL", "OUTER")] == [(sp, 80), (sp, 256)]  # fmt: skip
