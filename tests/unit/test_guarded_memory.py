"""Where the stacks of a live process lie: its mappings are read again when they may have changed,
and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from qtrace.machine.guarded import guarded_in
from qtrace.machine.memory import PAGE
from qtrace.process import maps
from qtrace.process.maps import GuardedMemory

STACK = 1 << 20
# Maps what a coroutine's stack is when it reads a line, as qemu_alloc_stack() does and
# makecontext() writes to it; unmaps it with the next one.
MAPS = f"""
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
size = {STACK + PAGE}
print(flush=True)
for line in sys.stdin:
    start = libc.mmap(None, size, 3, 0x22, -1, 0)
    libc.mprotect(start, {PAGE}, 0)
    ctypes.c_uint64.from_address(start + size - 8).value = 1
    print(start, flush=True)
    sys.stdin.readline()
    libc.munmap(start, size)
    print(flush=True)
"""


class Mapping:
    """A process that maps, and is stopped while it is asked about."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self._said()

    def next(self) -> int:
        """Where the stack lies that it has mapped; 0 after it was unmapped."""
        assert self.process.stdin is not None
        os.kill(self.pid, signal.SIGCONT)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._said()

    def _said(self) -> int:
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        return int(said.strip() or 0)


@pytest.fixture
def mapping() -> Iterator[Mapping]:
    one = Mapping()
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids whose mappings have been read."""
    found: list[int] = []
    read = maps._maps

    def counted(pid: int) -> bytes:
        found.append(pid)
        return read(pid)

    monkeypatch.setattr(maps, "_maps", counted)
    return found


def test_a_stack_is_found_as_soon_as_it_is_used_and_gone_when_it_is_unmapped(
    mapping: Mapping,
) -> None:
    memory = GuardedMemory(mapping.pid)
    for _ in range(3):
        before = {start for start, _end in memory.find()}
        start = mapping.next()
        assert start not in before
        # The kernel may join it with what lies above.
        assert {end - start >= STACK + PAGE for at, end in memory.find() if at == start} == {True}
        assert mapping.next() == 0
        assert start not in {at for at, _end in memory.find()}


def test_mappings_that_cannot_have_changed_are_not_read_again(
    mapping: Mapping, readings: list[int]
) -> None:
    memory = GuardedMemory(mapping.pid)
    found = memory.find()
    for _ in range(3):
        assert memory.find() == found
    assert readings == [mapping.pid]
    mapping.next()
    assert memory.find() != found
    assert readings == [mapping.pid] * 2


def test_whatever_is_counted_mappings_are_read_again_after_a_while(
    mapping: Mapping, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "KEPT_S", 0.0)
    memory = GuardedMemory(mapping.pid)
    assert memory.find() == memory.find()
    assert readings == [mapping.pid] * 2


def test_only_one_page_below_what_may_be_written_is_a_guard() -> None:
    lines = [
        b"7f0000000000-7f0000001000 ---p 00000000 00:00 0 ",
        b"7f0000001000-7f0000101000 rw-p 00000000 00:00 0 ",
        b"7f0000200000-7f0000204000 ---p 00000000 00:00 0 ",
        b"7f0000204000-7f0000304000 rw-p 00000000 00:00 0 ",
        b"7f0000400000-7f0000401000 ---p 00000000 fe:00 12                /lib/a ---p 0 00:00 0 ",
        b"7f0000401000-7f0000501000 rw-p 00000000 00:00 0 ",
        b"7f0000600000-7f0000601000 ---p 00000000 00:00 0 ",
        b"7f0000602000-7f0000702000 rw-p 00000000 00:00 0 ",
        b"7f0000800000-7f0000801000 ---p 00000000 00:00 0 ",
    ]
    assert guarded_in(b"\n".join(lines)) == [(0x7F0000000000, 0x7F0000101000)]
