"""A system call that was interrupted goes on as the kernel would let it."""

from __future__ import annotations

import pytest

from qtrace.machine.arch_x86_64 import restarted

PPOLL, RESTART, AFTER = 271, 219, 0x1002
WORD = 1 << 64


@pytest.mark.parametrize(
    ("result", "number"), [(-512, PPOLL), (-513, PPOLL), (-514, PPOLL), (-516, RESTART)]
)
def test_an_interrupted_one_is_made_anew(result: int, number: int) -> None:
    stopped = {"rax": result % WORD, "orig_rax": PPOLL, "rip": AFTER, "rdi": 7}
    again = {"rax": number, "orig_rax": WORD - 1, "rip": AFTER - 2, "rdi": 7}
    assert restarted(stopped) == again


@pytest.mark.parametrize(("result", "orig"), [(3, PPOLL), (-4 % WORD, PPOLL), (-512, WORD - 1)])
def test_what_has_ended_or_is_none_is_left_alone(result: int, orig: int) -> None:
    stopped = {"rax": result % WORD, "orig_rax": orig, "rip": AFTER, "rdi": 7}
    assert restarted(stopped) == stopped
