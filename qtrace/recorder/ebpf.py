"""eBPF uprobes by bcc: sites in, raw hits out. Never stops the target; no return probe."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qtrace.errors import CodeMismatch
from qtrace.recorder.program import WatchProgram
from qtrace.target.arch_x86_64 import PAGE, REGISTER_COUNT, RETURN_ADDRESS, RSP
from qtrace.target.process import Process
from qtrace.target.watch import Site

UPROBE_ENTRY = 0  # BPF_PROBE_ENTRY of libbcc


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit of a site, as the kernel copied it.

    Attributes:
        registers: by DWARF number, ``RETURN_ADDRESS`` being the site itself.
        candidates: 64 bytes behind each callee-saved register, one of which is the
            QEMUBH when a callback is entered.
        stack: the stack's bytes from ``stack_base`` on.
    """

    time_ns: int
    tid: int
    thread: str
    registers: dict[int, int]
    candidates: bytes
    stack_base: int
    stack: bytes

    @property
    def address(self) -> int:
        return self.registers[RETURN_ADDRESS]


class EbpfProbes:
    """The armed probes of one process. Everything ends with ``close``, or with qtrace."""

    def __init__(self, process: Process, program: WatchProgram) -> None:
        self._process = process
        self._program = program
        self._events = program.bpf[b"events"]
        self._lost = program.bpf[b"lost"]
        self._fds: dict[Site, int] = {}
        self._hits: list[Hit] = []
        self._events.open_ring_buffer(self._receive)

    def attach(self, sites: Sequence[Site]) -> None:
        """Arm a probe at each site. Raises CodeMismatch when one cannot be set."""
        for site in sites:
            offset = self._process.binary.elf.offset_of(site.vaddr)
            fd = self._program.library.bpf_attach_uprobe(
                self._program.fd,
                UPROBE_ENTRY,
                f"qtrace_{self._process.pid}_{site.vaddr:x}".encode(),
                self._process.exe.encode(),
                offset,
                self._process.pid,
                0,
            )
            if fd < 0:
                reason = os.strerror(ctypes.get_errno())
                raise CodeMismatch(
                    f"the kernel refuses a probe at {site.label} ({reason})",
                    "qtrace doctor --pid says what is missing",
                )
            self._fds[site] = fd

    def poll(self, timeout_s: float) -> list[Hit]:
        """The hits of now, waiting for one at most so long;"""
        self._program.bpf.ring_buffer_poll(timeout=max(int(timeout_s * 1000), 0))
        hits, self._hits = self._hits, []
        return hits

    def drain(self) -> list[Hit]:
        """What is still in the ring buffer, without waiting."""
        self._program.bpf.ring_buffer_consume()
        hits, self._hits = self._hits, []
        return hits

    def lost(self) -> dict[int, int]:
        """Hits that found no room in the ring buffer so far, by run-time address."""
        return {int(key.value): int(count.value) for key, count in self._lost.items()}

    def close(self) -> None:
        """Disarm all probes."""
        for fd in self._fds.values():
            self._program.library.bpf_close_perf_event_fd(fd)
        self._fds.clear()

    def _receive(self, _context: Any, data: int, _size: int) -> None:
        event = self._events.event(data)
        registers = dict(enumerate(event.registers[:REGISTER_COUNT]))
        base = registers[RSP]
        start = base & (PAGE - 1)
        address = ctypes.addressof(event) + type(event).stack.offset
        length = max(event.stack_end - start, 0)
        self._hits.append(
            Hit(
                time_ns=event.time_ns,
                tid=event.tid,
                thread=event.comm.decode("utf-8", "surrogateescape"),
                registers=registers,
                candidates=bytes(event.candidates),
                stack_base=base,
                stack=ctypes.string_at(address + start, length),
            )
        )
