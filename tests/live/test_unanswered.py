"""A QEMU whose memory nobody can read any more: the kernel keeps whoever tries waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtrace.errors import RecorderUnavailable
from qtrace.host.locked_maps import refuse_while_locked, why_locked
from qtrace.host.unanswered import NoAnswer, ask
from qtrace.lab.guest import Guest, find_qemu
from tests.live.support.counted import own_copy
from tests.live.support.dead_fuse import changing_the_map, fuse_file, locked_memory_map
from tests.live.support.inspecting import inspect
from tests.live.support.ptraced import assert_runs_on, until

pytestmark = [pytest.mark.fuse, pytest.mark.qemu]

TIMEOUT_S = 60


# Unmaps dirty memory of a file in one thread, and maps some in another.
UNMAP = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
SIZE, READ_WRITE, SHARED, ANONYMOUS = 1 << 16, 3, 1, 0x22
dirty = libc.mmap(None, SIZE, READ_WRITE, SHARED, os.open(sys.argv[1], os.O_RDWR), 0)
ctypes.memset(dirty, 7, SIZE)
threading.Thread(target=lambda: (sys.stdin.read(1), libc.munmap(dirty, SIZE))).start()
print("ready", flush=True)
sys.stdin.read(1)
libc.mmap(None, SIZE, READ_WRITE, ANONYMOUS, -1, 0)
print("over", flush=True)
"""


def test_a_question_that_is_not_answered_is_given_up(tmp_path: Path) -> None:
    with fuse_file(tmp_path) as file:
        child = subprocess.Popen(
            [sys.executable, "-c", UNMAP, str(file.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            try:
                assert child.stdout.readline() == b"ready\n"
                question = Path(f"/proc/{child.pid}/cmdline").read_bytes
                assert ask(question, 0.5)
                assert why_locked(child.pid) == ""
                file.freeze()
                for threads in (1, 2):
                    child.stdin.write(b"x")
                    until(lambda n=threads: changing_the_map(child.pid) == n, "the sleep")
                with pytest.raises(NoAnswer, match=r"read .*/cmdline, .*\(folio_wait_bit\)"):
                    ask(question, 0.5)
                assert ask(lambda: os.readlink(f"/proc/{child.pid}/exe"), 0.5)
                assert "sleeps uninterruptibly in m" in why_locked(child.pid)
                with pytest.raises(RecorderUnavailable, match=f"process {child.pid}, which runs"):
                    refuse_while_locked(sys.executable, 0)
            finally:
                file.thaw()
            assert child.stdout.readline() == b"over\n"
        assert child.returncode == 0


def checked_host() -> dict[int, dict[str, Any]]:
    """What `qtrace check --host` says of each QEMU, within the time of any command here."""
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "check", "--host", "--for", "1s", "--format", "json"],
        text=True, capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    return {one["target"]["pid"]: one for one in json.loads(run.stdout)["qemus"]}


@pytest.mark.soak
def test_whoever_gets_no_answer_ends_and_says_who_is_in_the_way(tmp_path: Path) -> None:
    # Both of one file, and nobody else's.
    copy = own_copy(find_qemu(), tmp_path)
    with (
        Guest(copy, firmware="idle") as other,
        locked_memory_map(copy, tmp_path) as (guest, file),
    ):
        for options in ((), ("--gdb",)):
            status, document, err = inspect("--pid", guest.pid, *options)
            assert (status, document) == (3, {})
            assert f"the kernel lets nobody read /proc/{guest.pid}/" in err
            assert "(folio_wait_bit)" in err
        run = subprocess.run(
            [sys.executable, "-m", "qtrace", "ps", "--format", "json"],
            text=True, capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        listed = {p["pid"]: p for p in json.loads(run.stdout)["processes"]}
        assert "the kernel lets nobody read" in listed[guest.pid]["hindrance"]
        assert listed[other.pid]["version"]
        # Setting probes in that program would keep the whole host from making processes.
        run = subprocess.run(
            [sys.executable, "-m", "qtrace", "attach", "--pid", str(other.pid), "--duration", "1s"],
            text=True, capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert run.returncode == 3
        assert f"process {guest.pid}, which runs it, too, has its memory map locked" in run.stderr
        found = checked_host()
        assert found[other.pid]["verdict"] == "healthy"
        assert found[guest.pid]["verdict"] == "inconclusive"
        assert "the kernel lets nobody read" in found[guest.pid]["error"]
        file.thaw()
        assert inspect("--pid", guest.pid)[0] == 0
        assert_runs_on(guest)
