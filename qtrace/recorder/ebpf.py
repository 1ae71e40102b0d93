"""eBPF uprobes by bcc: sites in, raw hits out. Never stops the target; no return probe."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from qtrace.errors import CodeMismatch
from qtrace.recorder.program import Program, RingBuffer
from qtrace.target.arch_x86_64 import PAGE, REGISTER_COUNT, RSP
from qtrace.target.hit import Hit
from qtrace.target.process import Process
from qtrace.target.watch import Site

UPROBE_ENTRY = 0  # BPF_PROBE_ENTRY of libbcc


class EbpfProbes:
    """The armed uprobes of one process; see ``qtrace.recorder.probes.Probes``."""

    name = "ebpf"

    def __init__(self, process: Process, program: Program) -> None:
        self._process = process
        self._program = program
        self._layout = program.layout
        self._fds: dict[Site, int] = {}
        self._hits: list[Hit] = []
        self._ring = RingBuffer(program, "events", self._receive)

    def attach(self, sites: Sequence[Site]) -> None:
        """Arm a probe at each site. Raises CodeMismatch when one cannot be set."""
        for site in sites:
            offset = self._process.binary.elf.offset_of(site.vaddr)
            fd = self._program.library.bpf_attach_uprobe(
                self._program.functions["on_hit"],
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
        """The hits of now, waiting for one at most so long."""
        self._ring.poll(max(int(timeout_s * 1000), 0))
        return self._collected()

    def drain(self) -> list[Hit]:
        """What is still in the ring buffer, without waiting."""
        self._ring.consume()
        return self._collected()

    def lost(self) -> dict[int, int]:
        """Hits that found no room in the ring buffer so far, by run-time address."""
        return dict(self._program.counts("lost"))

    def close(self) -> None:
        """Disarm all probes."""
        if not self._fds:
            return
        # The kernel waits 0.1 s for each to be out of use: let it wait for all at once.
        with ThreadPoolExecutor(len(self._fds)) as pool:
            list(pool.map(self._program.library.bpf_close_perf_event_fd, self._fds.values()))
        self._fds.clear()

    def pauses_ms(self) -> dict[str, float]:
        return {}

    def problems(self) -> list[str]:
        return []

    def _collected(self) -> list[Hit]:
        hits, self._hits = self._hits, []
        return hits

    def _receive(self, address: int, _size: int) -> None:
        registers = struct.unpack(f"<{REGISTER_COUNT}Q", self._field(address, "registers"))
        base = registers[RSP]
        start = base & (PAGE - 1)
        end = int.from_bytes(self._field(address, "stack_end"), "little")
        comm = self._field(address, "comm").split(b"\0", 1)[0]
        self._hits.append(
            Hit(
                time_ns=int.from_bytes(self._field(address, "time_ns"), "little"),
                tid=int.from_bytes(self._field(address, "tid"), "little"),
                thread=comm.decode("utf-8", "surrogateescape"),
                registers=dict(enumerate(registers)),
                candidates=self._field(address, "candidates"),
                stack_base=base,
                stack=ctypes.string_at(
                    address + self._layout["stack"][0] + start, max(end - start, 0)
                ),
            )
        )

    def _field(self, address: int, name: str) -> bytes:
        offset, size = self._layout[name]
        return ctypes.string_at(address + offset, size)
