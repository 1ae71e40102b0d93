"""eBPF uprobes by bcc: sites in, raw hits out. Never stops the target; no return probe."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Mapping, Sequence

from qtrace.recorder.program import FUNCTIONS, Program, RingBuffer
from qtrace.recorder.uprobes import Uprobes
from qtrace.target.arch_x86_64 import PAGE, REGISTER_COUNT, RSP
from qtrace.target.hit import Hit
from qtrace.target.watch import Site


class EbpfProbes:
    """The armed uprobes of one process; see ``qtrace.recorder.probes.Probes``."""

    name = "ebpf"

    def __init__(self, uprobes: Uprobes, program: Program) -> None:
        self._uprobes = uprobes
        self._program = program
        self._layout = program.layout
        self._hits: list[Hit] = []
        self._ring: RingBuffer | None = None

    def attach(self, sites: Sequence[Site]) -> None:
        """Arm a probe at each site. Raises CodeMismatch when one cannot be set."""
        if not sites:
            return
        if self._ring is None:
            self._ring = RingBuffer(self._program, "events", self._receive)
        for function, wanted in zip(FUNCTIONS, (False, True), strict=True):
            labels = {site.vaddr: site.label for site in sites if site.is_step is wanted}
            self._uprobes.attach(self._program.functions[function], labels)

    def poll(self, timeout_s: float) -> list[Hit]:
        """The hits of now, waiting for one at most so long."""
        if self._ring is None:
            time.sleep(timeout_s)
            return []
        self._ring.poll(max(int(timeout_s * 1000), 0))
        return self._collected()

    def drain(self) -> list[Hit]:
        """What is still in the ring buffer, without waiting."""
        if self._ring is not None:
            self._ring.consume()
        return self._collected()

    def lost(self) -> dict[int, int]:
        """Hits that found no room in the ring buffer so far, by run-time address."""
        return dict(self._program.counts("lost"))

    def counted_ns(self, asked_ns: int) -> int:
        return asked_ns

    def close(self) -> None:
        """Disarm all probes."""
        self._uprobes.close()

    def pauses_ms(self) -> dict[str, float]:
        return {}

    def problems(self) -> list[str]:
        return []

    def _collected(self) -> list[Hit]:
        hits, self._hits = self._hits, []
        return hits

    def _receive(self, address: int, _size: int) -> None:
        self._hits.append(read_hit(self._layout, address))


def read_hit(layout: Mapping[str, tuple[int, int]], address: int) -> Hit:
    """A ``struct watch_event`` that lies at an address of ours.

    Args:
        layout: offset and size of its fields.
    """

    def field(name: str) -> bytes:
        offset, size = layout[name]
        return ctypes.string_at(address + offset, size)

    registers = struct.unpack(f"<{REGISTER_COUNT}Q", field("registers"))
    base = registers[RSP]
    start = base & (PAGE - 1)
    end = int.from_bytes(field("stack_end"), "little")
    comm = field("comm").split(b"\0", 1)[0]
    return Hit(
        time_ns=int.from_bytes(field("time_ns"), "little"),
        tid=int.from_bytes(field("tid"), "little"),
        thread=comm.decode("utf-8", "surrogateescape"),
        registers=dict(enumerate(registers)),
        candidates=field("candidates"),
        stack_base=base,
        stack=ctypes.string_at(address + layout["stack"][0] + start, max(end - start, 0)),
    )
