"""What threads wait for in system calls: a process of the test's own sleeps in each of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qtrace.host.sleeping import asleep_since_ns
from qtrace.machine.memory import ProcessMemory
from qtrace.machine.syscalls import syscall_name
from qtrace.machine.thread_files import read_system_call
from qtrace.process.call_arguments import Child, Descriptor, Epoll, waited_for
from qtrace.process.call_arguments import Path as AskedPath
from tests.live.support.other_process import BEGINNING
from tests.live.support.ptraced import until

# What it does first, what it then sleeps in, and what that is seen to be.
PAIR = "a, b = socket.socketpair(); os.dup2(a.fileno(), 80); s = socket.socket(fileno=80)\n"
PIPE = "r, w = os.pipe(); os.dup2(r, 80); os.dup2(w, 81)\n"
FULL = "os.set_blocking(81, False)\ntry:\n  while True: os.write(81, bytes(1))\n" \
       "except BlockingIOError: os.set_blocking(81, True)\n"  # fmt: skip
CASES = {
    "read": (PIPE + "os.read(80, 1)", "read", [Descriptor(80, False)]),
    "write": (PIPE + FULL + "os.write(81, b'x')", "write", [Descriptor(81, True)]),
    "recvfrom": (PAIR + "s.recv(1)", "recvfrom", [Descriptor(80, False)]),
    "recvmsg": (PAIR + "s.recvmsg(1)", "recvmsg", [Descriptor(80, False)]),
    "poll": (
        PIPE + FULL + "r, w = os.pipe(); os.dup2(r, 82)\n"
        "import select; p = select.poll(); p.register(82, select.POLLIN)\n"
        "p.register(81, select.POLLOUT); p.poll()",
        "poll",
        [Descriptor(82, False), Descriptor(81, True)],
    ),
    "select": (
        PIPE + "import select; select.select([80], [], [])",
        "pselect6",
        [Descriptor(80, False)],
    ),
    "epoll": (
        PIPE + "import select; e = select.epoll(); e.register(80, select.EPOLLIN)\n"
        "os.dup2(e.fileno(), 82); select.epoll.fromfd(82).poll()",
        "epoll_wait",
        [Epoll(82)],
    ),
    "openat": ("os.mkfifo('p'); os.open('p', os.O_RDONLY)", "openat", [AskedPath("p", None)]),
    "openat below": (
        "os.mkdir('d'); os.mkfifo('d/p'); os.dup2(os.open('d', os.O_RDONLY), 80)\n"
        "os.open('p', os.O_RDONLY, dir_fd=80)",
        "openat",
        [AskedPath("p", 80)],
    ),
    "connect": (
        "l = socket.socket(socket.AF_UNIX); l.bind('s'); l.listen(0)\n"
        "c = socket.socket(socket.AF_UNIX); c.connect('s')\n"
        "n = socket.socket(socket.AF_UNIX); os.dup2(n.fileno(), 80); n = socket.socket(fileno=80)\n"
        "n.connect('s')",
        "connect",
        [Descriptor(80, True, "s")],
    ),
    "wait4": (
        "if os.fork(): os.wait4(-1, 0)\nsignal.pause()",
        "wait4",
        [Child(0)],
    ),
    "waitid": (
        "if os.fork(): os.waitid(os.P_ALL, 0, os.WEXITED)\nsignal.pause()",
        "waitid",
        [Child(0)],
    ),
    "splice": (
        PIPE + "q, x = os.pipe(); os.dup2(x, 82); os.splice(80, 82, 1)",
        "splice",
        [Descriptor(80, False), Descriptor(82, True)],
    ),
    "nothing": ("signal.pause()", "pause", []),
}


def call_of(pid: int) -> tuple[str, tuple[int, ...]]:
    """The system call that a process sleeps in, and its arguments; empty when it is in none."""
    found = read_system_call(pid, pid)
    if found is None:
        return "", ()
    return syscall_name(found.number, found.arguments[1]), found.arguments


@pytest.mark.parametrize("case", CASES)
def test_a_call_tells_what_it_waits_for(case: str, tmp_path: Path) -> None:
    code, call, expected = CASES[case]
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", BEGINNING + code], cwd=tmp_path,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: call_of(process.pid)[0].startswith(call) or process.poll() is not None, call)
        name, arguments = call_of(process.pid)
        found = waited_for(ProcessMemory(process.pid), name, arguments)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    assert found == expected


def test_since_when_it_sleeps_is_never_said_to_be_longer_than_it_is() -> None:
    if not Path("/proc/self/sched").exists():
        pytest.skip("this kernel does not tell (CONFIG_SCHED_DEBUG)")
    before = time.monotonic_ns()
    process = subprocess.Popen(["sleep", "1000"])
    found: list[int | None] = []
    try:
        until(lambda: "nanosleep" in call_of(process.pid)[0], "its sleep")
        time.sleep(0.3)

        def is_told() -> bool:
            # Where its processor is busy the answer may not come in time.
            found.append(asleep_since_ns(process.pid, process.pid))
            return found[-1] is not None

        until(is_told, "the answer")
    finally:
        process.kill()
        process.wait()
    assert found[-1] is not None
    assert before <= found[-1] <= time.monotonic_ns() - 250_000_000
