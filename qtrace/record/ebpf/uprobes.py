"""Arming sites of one executable, for one process; everything is gone with ``close``.

Where the kernel has it (qtrace/host/uprobe_links.py), one link holds all sites of a BPF function;
else each site takes a perf event.

An event belongs to the process's main thread: at each of its context switches the kernel takes
those that are on off and on again, which took up to a third of a storage daemon's rate. So they are
never switched on: for the breakpoint and its BPF program it is enough that they are there
(__uprobe_perf_func() in kernel/trace/trace_uprobe.c).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from qtrace.errors import CodeMismatch
from qtrace.host.capabilities import UPROBE_PMU
from qtrace.host.locked_maps import refuse_while_locked
from qtrace.host.uprobe_links import link_uprobes as link
from qtrace.host.uprobe_links import links_work
from qtrace.machine.architectures import HOST
from qtrace.record.ebpf import close_later

PERF_EVENT_OPEN = HOST.call_number("perf_event_open")
# linux/perf_event.h
ATTRIBUTE_BYTES = 72  # PERF_ATTR_SIZE_VER1: up to config2
DISABLED = 1  # the first of the flags
FLAG_FD_CLOEXEC = 8
IOC_SET_BPF = 0x40042408
_libc = ctypes.CDLL(None, use_errno=True)
REMEDY = "qtrace doctor --pid says what is missing"


class Uprobes:
    """The armed probes of one process.

    Args:
        exe: what to open for its executable.
        offset_of: from a link-time address to a file offset.
    """

    def __init__(self, pid: int, exe: str, offset_of: Callable[[int], int | None]) -> None:
        self._pid = pid
        self._exe = exe.encode()
        self._offset_of = offset_of
        self._links: list[int] = []
        self._events: list[int] = []

    def attach(self, function: int, labels: Mapping[int, str]) -> None:
        """Let a BPF function run at link-time addresses, each with what to call it.

        Raises:
            CodeMismatch: the kernel refuses.
            RecorderUnavailable: it would stop the whole host (qtrace/host/locked_maps.py).
        """
        self.attach_all([(function, labels)])

    def attach_all(self, functions: Iterable[tuple[int, Mapping[int, str]]]) -> None:
        """The same of several, for all of which the host is looked at once."""
        refuse_while_locked(self._exe.decode(), self._pid)
        for function, labels in functions:
            self._attach(function, labels)

    def hand_over(self) -> list[int]:
        """The descriptors that keep the probes armed; whoever has them ends them from now on."""
        kept = [*self._links, *self._events]
        self._links, self._events = [], []
        return kept

    def _attach(self, function: int, labels: Mapping[int, str]) -> None:
        offsets = {self._offset_of(vaddr) or 0: label for vaddr, label in labels.items()}
        if not offsets:
            return
        if not links_work():
            for offset, label in offsets.items():
                self._attach_event(function, offset, label)
            return
        try:
            self._links.append(link(function, self._exe, list(offsets), self._pid))
        except OSError as error:
            raise _refused(error.errno or 0, ", ".join(offsets.values())) from error

    def _attach_event(self, function: int, offset: int, label: str) -> None:
        try:
            self._events.append(open_event(function, self._exe, offset, self._pid))
        except OSError as error:
            raise _refused(error.errno or 0, label) from error

    def close(self) -> None:
        """Disarm all of them; perf events go a little later."""
        # The kernel waits 0.1 s for each to be out of use: let it wait for all at once.
        if self._links:
            with ThreadPoolExecutor(len(self._links)) as pool:
                list(pool.map(os.close, self._links))
        if self._events:
            _close_elsewhere(self._events)
        self._links.clear()
        self._events.clear()


def open_event(function: int, path: bytes, offset: int, pid: int) -> int:
    """A perf event that runs a BPF function at a place of a file, in one process, although it is
    off: its file descriptor. Raises OSError."""
    name = ctypes.create_string_buffer(path)
    # type, size, config, sample_period, sample_type, read_format, flags, wakeup_events, bp_type,
    # then the path and the offset.
    attributes = struct.pack(
        "<IIQQQQQIIQQ", int(UPROBE_PMU.read_text()), ATTRIBUTE_BYTES, 0, 1, 0, 0, DISABLED, 0, 0,
        ctypes.addressof(name), offset,
    )  # fmt: skip
    buffer = ctypes.create_string_buffer(attributes, ATTRIBUTE_BYTES)
    fd = _libc.syscall(
        ctypes.c_long(PERF_EVENT_OPEN), buffer, ctypes.c_int(pid), ctypes.c_int(-1),
        ctypes.c_int(-1), ctypes.c_ulong(FLAG_FD_CLOEXEC),
    )  # fmt: skip
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        fcntl.ioctl(fd, IOC_SET_BPF, function)
    except OSError:
        os.close(fd)
        raise
    return int(fd)


def _close_elsewhere(events: Sequence[int]) -> None:
    """Let another process be the last to have them: it takes seconds, and what a probe tells
    meanwhile is no part of the recording."""
    reads, until = os.pipe()
    with suppress(OSError):
        subprocess.run(
            [sys.executable, "-I", "-S", close_later.__file__, *map(str, (reads, *events))],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(reads, *events), start_new_session=True,
        )  # fmt: skip
    for fd in (reads, *events, until):
        os.close(fd)


def _refused(number: int, where: str) -> CodeMismatch:
    """An errno of the kernel's as an error of ours."""
    if number == errno.EINVAL:
        # find_uprobe() gave one that was made with another ref_ctr_offset; the attach_uprobe() of
        # bcc 0.26 leaves what happens to be there (kernel/events/uprobes.c).
        return CodeMismatch(
            f"another tracer has a probe at {where} that lets no other be set there",
            "end bpftrace, bcc tools or perf on this QEMU's file, then try again",
        )
    return CodeMismatch(f"the kernel refuses probes at {where} ({os.strerror(number)})", REMEDY)
