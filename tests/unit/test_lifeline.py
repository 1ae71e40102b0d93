"""The lifeline tells a holder's death from its release."""

from __future__ import annotations

import os
import signal

import pytest

from qtrace.gdb.safety.lifeline import Lifeline


@pytest.mark.parametrize("dies", [True, False])
def test_only_a_death_is_a_death(dies: bool) -> None:
    fd = Lifeline.create()
    held_read, held_write = os.pipe()
    end_read, end_write = os.pipe()
    child = os.fork()
    if child == 0:
        lifeline = Lifeline(fd)
        lifeline.hold()
        os.write(held_write, b"!")
        os.read(end_read, 1)
        lifeline.release()
        os.read(end_read, 1)
        os._exit(0)
    try:
        assert os.read(held_read, 1) == b"!"
        if dies:
            os.kill(child, signal.SIGKILL)
        else:
            os.write(end_write, b"!")
        assert Lifeline(fd).wait() is dies
    finally:
        if not dies:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (fd, held_read, held_write, end_read, end_write):
            os.close(end)
