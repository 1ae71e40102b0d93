"""The names of system calls are those of the kernel's own header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qtrace.machine.syscalls import KVM_RUN, NAMES, syscall_name

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def test_every_number_of_the_header_has_its_name() -> None:
    if not HEADER.exists():
        pytest.skip("linux-libc-dev is not installed")
    defined = re.findall(r"^#define __NR_(\w+) (\d+)$", HEADER.read_text(), re.MULTILINE)
    assert len(defined) > 350
    assert {number: NAMES.get(int(number)) for _name, number in defined} == {
        number: name for name, number in defined
    }


def test_a_call_that_no_table_has_yet_is_told_by_its_number() -> None:
    assert syscall_name(600) == "syscall 600"
    assert syscall_name(5) == "fstat"
    assert syscall_name(16, KVM_RUN) == "ioctl(KVM_RUN)"
    assert len(set(NAMES.values())) == len(NAMES)
