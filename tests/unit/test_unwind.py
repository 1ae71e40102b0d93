"""Unwind rules decoded on demand equal a full decode; chains end where they really end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from qtrace.binary.cfi import CallFrames, rule_of_row
from qtrace.binary.elf import Elf
from qtrace.machine.arch_x86_64 import RETURN_ADDRESS, RSP, follows_a_call, jump_slot
from qtrace.process.stack import CopiedStack


def test_rules_on_demand_equal_pyelftools_full_decode() -> None:
    path = Path(shutil.which("ls") or "/bin/ls")
    frames = CallFrames(Elf(path))
    checked = 0
    with path.open("rb") as file:
        dwarf = ELFFile(file).get_dwarf_info()
        for entry in dwarf.EH_CFI_entries():
            if not isinstance(entry, FDE):
                continue
            for row in entry.get_decoded().table:
                assert frames.rule(row["pc"]) == rule_of_row(row, RETURN_ADDRESS)
                checked += 1
    assert checked > 1000


def test_no_rule_outside_of_any_function() -> None:
    frames = CallFrames(Elf(Path(shutil.which("ls") or "/bin/ls")))
    assert frames.rule(0) is None
    assert frames.rule(1 << 40) is None


@pytest.mark.parametrize(
    ("code", "is_call"),
    [
        (b"\x90\x90\xe8\x01\x02\x03\x04", True),  # call rel32
        (b"\x90\x90\x90\x90\x90\xff\xd2", True),  # call *%rdx
        (b"\x90\x90\x90\x90\x41\xff\xd4", True),  # call *%r12
        (b"\x90\x90\x90\x90\xff\x53\x10", True),  # call *0x10(%rbx)
        (b"\x90\xff\x15\x01\x02\x03\x04", True),  # call *x(%rip)
        (b"\x90\xff\x93\x01\x02\x03\x04", True),  # call *0x4030201(%rbx)
        (b"\x90\x90\x90\x90\x90\x90\xc3", False),  # ret
        (b"\x0f\x1f\x84\x00\x00\x00\x00", False),  # nop
        (b"", False),
    ],
)
def test_a_return_address_is_told_by_the_call_before_it(code: bytes, is_call: bool) -> None:
    assert follows_a_call(code) is is_call


@pytest.mark.parametrize(
    ("code", "slot"),
    [
        (b"\xff\x25\x10\x00\x00\x00\x68\x00\x00\x00\x00", 0x1016),
        (b"\xf3\x0f\x1e\xfa\xff\x25\x10\x00\x00\x00\x66", 0x101A),
        (b"\xf3\x0f\x1e\xfa\xf2\xff\x25\x10\x00\x00\x00", 0x101B),
        (b"\xf3\x0f\x1e\xfa\x55\x48\x89\xe5\x53\x48\x83", None),
        (b"\xff\x25", None),
    ],
)
def test_a_stub_tells_where_it_jumps_to(code: bytes, slot: int | None) -> None:
    assert jump_slot(code, 0x1000) == slot


def test_a_copied_stack_has_no_words_beyond_its_ends() -> None:
    stack = CopiedStack(0x1000, bytes(range(16)))
    assert stack.word(0x1000) == 0x0706050403020100
    assert stack.word(0x1008) == 0x0F0E0D0C0B0A0908
    for outside in (0xFF8, 0x1001 + 8, 0x1010):
        assert stack.word(outside) is None


def test_register_numbers_are_dwarf_numbers() -> None:
    assert (RSP, RETURN_ADDRESS) == (7, 16)
