"""Stacks of threads that run, without stopping any: samples of the kernel's own clock.

perf_event_open(2) with PERF_COUNT_SW_CPU_CLOCK copies registers and the top of the stack at each
tick of a thread that has a processor; one that sleeps gives none. A library for it would be
another's (python-perf is built with a kernel); the record is 60 lines of struct.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from qtrace.machine.arch_x86_64 import PERF_REGISTERS, RSP
from qtrace.machine.architectures import HOST
from qtrace.machine.memory import PAGE
from qtrace.process.stack import CopiedStack

PERF_EVENT_OPEN = HOST.call_number("perf_event_open")
# struct perf_event_attr up to sample_stack_user (linux/perf_event.h, PERF_ATTR_SIZE_VER5).
ATTRIBUTES = struct.Struct("<IIQQQQQIIQQQQIIQII")
SOFTWARE, CPU_CLOCK = 1, 0
SAMPLE_TIME, SAMPLE_REGS_USER, SAMPLE_STACK_USER = 1 << 2, 1 << 12, 1 << 13
DISABLED, EXCLUDE_KERNEL, EXCLUDE_HV, USE_CLOCKID = 1 << 0, 1 << 5, 1 << 6, 1 << 25
FLAG_FD_CLOEXEC = 8
ENABLE, DISABLE = 0x2400, 0x2401
RECORD_SAMPLE = 9
# In struct perf_event_mmap_page.
DATA_HEAD = 1024

# What lies nearer to the thread's start is still there when it is read, or it is no longer in one
# callback. 256 KiB of buffer are what a user may lock by default.
STACK, DATA_PAGES = 4 << 10, 64
# Of processor time: so many ticks in half a second fit into the buffer.
PERIOD_NS = 7_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """CLOCK_MONOTONIC, registers by DWARF number (all of them), the memory at the stack pointer."""

    time_ns: int
    registers: dict[int, int]
    stack: CopiedStack


class RunningThreads:
    """Samples of some threads from now on, until it is closed.

    Threads that may not be sampled (no CAP_PERFMON, no such thread) have none.
    """

    def __init__(self, tids: Iterable[int]) -> None:
        self._events: dict[int, tuple[int, mmap.mmap]] = {}
        for tid in tids:
            fd = _open(tid)
            if fd < 0:
                continue
            try:
                data = mmap.mmap(fd, PAGE + DATA_PAGES * PAGE, mmap.MAP_SHARED)
            except OSError:
                os.close(fd)
                continue
            self._events[tid] = (fd, data)
            fcntl.ioctl(fd, ENABLE, 0)

    @property
    def tids(self) -> set[int]:
        """Those that can be sampled."""
        return set(self._events)

    def take(self) -> dict[int, list[Sample]]:
        """What there is so far of each thread: the first ones, until its buffer is full."""
        return {tid: _samples(data) for tid, (_fd, data) in self._events.items()}

    def close(self) -> None:
        for fd, data in self._events.values():
            with suppress(OSError):
                fcntl.ioctl(fd, DISABLE, 0)
            data.close()
            os.close(fd)
        self._events = {}


def _open(tid: int) -> int:
    """A descriptor, -1 where it is refused. Where the kernel's part may not be looked at, ticks
    in a system call are left out."""
    libc = ctypes.CDLL(None, use_errno=True)
    always = DISABLED | EXCLUDE_HV | USE_CLOCKID
    for flags in (always, always | EXCLUDE_KERNEL):
        attributes = ATTRIBUTES.pack(
            SOFTWARE, ATTRIBUTES.size, CPU_CLOCK, PERIOD_NS,
            SAMPLE_TIME | SAMPLE_REGS_USER | SAMPLE_STACK_USER, 0, flags, 0, 0, 0, 0, 0,
            sum(1 << number for number in PERF_REGISTERS), STACK,
            time.CLOCK_MONOTONIC, 0, 0, 0,
        )  # fmt: skip
        fd = libc.syscall(
            PERF_EVENT_OPEN, ctypes.create_string_buffer(attributes), tid, -1, -1, FLAG_FD_CLOEXEC
        )
        if fd >= 0:
            return int(fd)
    return -1


def _samples(data: mmap.mmap) -> list[Sample]:
    (head,) = struct.unpack_from("<Q", data, DATA_HEAD)
    found = []
    at = 0
    while at + 8 <= head:
        kind, _misc, size = struct.unpack_from("<IHH", data, PAGE + at)
        if not size:
            break
        if kind == RECORD_SAMPLE and (one := _sample(data[PAGE + at + 8 : PAGE + at + size])):
            found.append(one)
        at += size
    return found


def _sample(record: bytes) -> Sample | None:
    """From a PERF_RECORD_SAMPLE: the time, the ABI and the registers, the stack's size, its
    bytes and how many of them are."""
    time_ns, abi = struct.unpack_from("<2Q", record)
    if not abi:
        return None
    order = sorted(PERF_REGISTERS)
    values = struct.unpack_from(f"<{len(order)}Q", record, 16)
    registers = {PERF_REGISTERS[n]: value for n, value in zip(order, values, strict=True)}
    at = 16 + 8 * len(order)
    (size,) = struct.unpack_from("<Q", record, at)
    (used,) = struct.unpack_from("<Q", record, at + 8 + size) if size else (0,)
    return Sample(time_ns, registers, CopiedStack(registers[RSP], record[at + 8 : at + 8 + used]))
