"""Arming sites of one executable, for one process; everything is gone with ``close``."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qtrace.errors import CodeMismatch
from qtrace.target.elf import Elf

UPROBE_ENTRY = 0  # BPF_PROBE_ENTRY of libbcc


class Uprobes:
    """The armed probes of one process. ``exe`` is what to open for its executable."""

    def __init__(self, library: Any, pid: int, exe: str, elf: Elf) -> None:
        self._library = library
        self._pid = pid
        self._exe = exe.encode()
        self._elf = elf
        self._fds: list[int] = []

    def attach(self, function: int, vaddr: int, label: str) -> None:
        """Let a BPF function run at a link-time address.

        Raises CodeMismatch when the kernel refuses.
        """
        fd = self._library.bpf_attach_uprobe(
            function,
            UPROBE_ENTRY,
            f"qtrace_{self._pid}_{vaddr:x}".encode(),
            self._exe,
            self._elf.offset_of(vaddr),
            self._pid,
            0,
        )
        if fd < 0:
            reason = os.strerror(ctypes.get_errno())
            raise CodeMismatch(
                f"the kernel refuses a probe at {label} ({reason})",
                "qtrace doctor --pid says what is missing",
            )
        self._fds.append(fd)

    def close(self) -> None:
        """Disarm all of them."""
        if not self._fds:
            return
        # The kernel waits 0.1 s for each to be out of use: let it wait for all at once.
        with ThreadPoolExecutor(len(self._fds)) as pool:
            list(pool.map(self._library.bpf_close_perf_event_fd, self._fds))
        self._fds.clear()
