"""Arming sites of one executable, for one process; everything is gone with ``close``.

Where the kernel has it (Linux 6.6), one link holds all sites of a BPF function. A perf event
for each site, the older way, belongs to the process's main thread: the kernel takes all of them
off and on at each of its context switches, which is far more than the probes themselves cost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from qtrace.errors import CodeMismatch
from qtrace.host.bpf_syscall import SMALLEST_PROGRAM, TRACE_UPROBE_MULTI, load_program
from qtrace.host.bpf_syscall import link_uprobes as link

UPROBE_ENTRY = 0  # BPF_PROBE_ENTRY of libbcc
# Before 46ba0e49b642 (Linux 6.10) a link's pid meant one thread, not the whole process.
LINKS_SINCE = (6, 10)
REMEDY = "qtrace doctor --pid says what is missing"


@cache
def links_work() -> bool:
    """Whether this kernel has links for uprobes that mean whole processes."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    if release is None or (int(release[1]), int(release[2])) < LINKS_SINCE:
        return False
    try:
        os.close(load_program(SMALLEST_PROGRAM, attach_type=TRACE_UPROBE_MULTI))
    except OSError:
        return False
    return True


class Uprobes:
    """The armed probes of one process.

    Args:
        exe: what to open for its executable.
        offset_of: from a link-time address to a file offset.
    """

    def __init__(
        self, library: Any, pid: int, exe: str, offset_of: Callable[[int], int | None]
    ) -> None:
        self._library = library
        self._pid = pid
        self._exe = exe.encode()
        self._offset_of = offset_of
        self._links: list[int] = []
        self._events: list[int] = []

    def attach(self, function: int, labels: Mapping[int, str]) -> None:
        """Let a BPF function run at link-time addresses, each with what to call it.

        Raises CodeMismatch when the kernel refuses.
        """
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
        name = f"qtrace_{self._pid}_{offset:x}".encode()
        fd = self._library.bpf_attach_uprobe(
            function, UPROBE_ENTRY, name, self._exe, offset, self._pid, 0
        )
        if fd < 0:
            raise _refused(ctypes.get_errno(), label)
        self._events.append(fd)

    def close(self) -> None:
        """Disarm all of them."""
        # The kernel waits 0.1 s for each to be out of use: let it wait for all at once.
        if self._links or self._events:
            with ThreadPoolExecutor(len(self._links) + len(self._events)) as pool:
                list(pool.map(os.close, self._links))
                list(pool.map(self._library.bpf_close_perf_event_fd, self._events))
        self._links.clear()
        self._events.clear()


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
