"""Arming sites of one executable, for one process; everything is gone with ``close``.

Where the kernel has it (Linux 6.6), one link holds all sites of a BPF function. A perf event
for each site, the older way, belongs to the process's main thread: the kernel takes all of them
off and on at each of its context switches, which is far more than the probes themselves cost.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from qtrace.errors import CodeMismatch
from qtrace.target.bpf import SMALLEST_PROGRAM, TRACE_UPROBE_MULTI, load_program
from qtrace.target.bpf import link_uprobes as link

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
            where = ", ".join(offsets.values())
            raise CodeMismatch(
                f"the kernel refuses probes at {where} ({error.strerror})", REMEDY
            ) from error

    def _attach_event(self, function: int, offset: int, label: str) -> None:
        name = f"qtrace_{self._pid}_{offset:x}".encode()
        fd = self._library.bpf_attach_uprobe(
            function, UPROBE_ENTRY, name, self._exe, offset, self._pid, 0
        )
        if fd < 0:
            reason = os.strerror(ctypes.get_errno())
            raise CodeMismatch(f"the kernel refuses a probe at {label} ({reason})", REMEDY)
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
