"""The names of system calls are those of the kernel's own header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qtrace.machine.syscalls import KVM_RUN, NAMES, has_time_limit, syscall_name

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


@pytest.mark.parametrize(
    ("number", "arguments", "limited"),
    [
        (35, (0x7F00, 0, 0, 0, 0, 0), True),  # nanosleep
        (7, (0x7F00, 2, 1000, 0, 0, 0), True),  # poll
        (7, (0x7F00, 2, 0xFFFFFFFF, 0, 0, 0), False),
        (271, (0x7F00, 2, 0, 0, 8, 0), False),  # ppoll
        (271, (0x7F00, 2, 0x7F80, 0, 8, 0), True),
        (281, (5, 0x7F00, 10, 0xFFFFFFFFFFFFFFFF, 0, 8), False),  # epoll_pwait
        (202, (0x7F00, 0, 0, 0x7F80, 0, 0), False),  # futex
    ],
)
def test_a_sleep_has_an_end_by_itself(
    number: int, arguments: tuple[int, ...], limited: bool
) -> None:
    assert has_time_limit(number, arguments) == limited
