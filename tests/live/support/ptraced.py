"""Whether a guest is as it was: running at its own rate, its code untouched."""

from __future__ import annotations

import ctypes
import errno
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

from qtrace.gdb.target_state import changed_code, is_traced_or_stopped
from qtrace.lab.guest import Guest
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S


def until(condition: Callable[[], object], what: str = "it", limit_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.002)


def assert_runs_on(guest: Guest) -> None:
    """Alive, neither stopped nor traced, its code the file's, its work going on."""
    until(lambda: not is_traced_or_stopped(guest.pid), "being let go")
    assert guest.alive
    process = Process(guest.pid)
    assert process.tracer() == 0
    assert changed_code(process) == {}
    if guest.firmware == "pflash":
        before = guest.flash_writes()
        until(lambda: guest.flash_writes() > before + 200, "the guest's work")
    assert guest.qmp.command("query-status")["running"]


def tracer_of(pid: int) -> int:
    """Pid of the gdb that traces a process, once there is one."""
    process = Process(pid)
    until(process.tracer, "being traced")
    return process.tracer()


def send(pid: int, number: signal.Signals) -> None:
    import os

    os.kill(pid, number)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def refuse_ptrace() -> None:
    """For a child before its exec: ptrace(2) fails with EPERM, as in many a container."""
    instructions = (
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 0, 1, 101),  # if it is that of ptrace(2):
        (0x06, 0, 0, 0x50000 | errno.EPERM),
        (0x06, 0, 0, 0x7FFF0000),  # allowed
    )
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    code = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filters, 0, 0) == 0  # PR_SET_SECCOMP, a filter
