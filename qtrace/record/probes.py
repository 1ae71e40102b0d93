"""The sites of a recording, armed by eBPF or, where that cannot be, by gdb."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from qtrace.errors import RecorderUnavailable
from qtrace.host.capabilities import check_ebpf
from qtrace.process.hit import Hit
from qtrace.process.process import Process
from qtrace.record.ebpf.bpf_program import Program, load_ahead
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.record.recording_options import Backend
from qtrace.sites.watch_plan import Site


class Probes(Protocol):
    """The armed sites of one process. Everything ends with ``close``, or with qtrace.

    Attributes:
        name: ``ebpf`` or ``gdb``, as the trace names its recorder.
        note: what is to be said of how it was made ready; mostly empty.
    """

    name: str
    note: str

    def attach(self, sites: Sequence[Site]) -> None:
        """Arm them all. Raises QtraceError when one cannot be armed; then none is."""

    def count_losses(self, on: bool) -> None:
        """Whether a hit that is lost from now on counts; before the first call none does."""

    def poll(self, timeout_s: float) -> list[Hit]:
        """The oldest hits up to now, a bounded number; waits for one at most so long.

        Raises RecorderFailed.
        """

    def drain(self) -> list[Hit]:
        """All hits up to now, without waiting, after ``close`` too."""

    def oldest_ns(self) -> int | None:
        """When the oldest hit that waits to be polled was met; None when there is none."""

    def whole_stack(self, base: int, end: int) -> None:
        """Whoever has its stack pointer near ``base`` has its outermost frame below ``end``."""

    def lost(self) -> dict[int, int]:
        """Hits of which only the number is known, by run-time address."""

    def counted_ns(self, asked_ns: int) -> int:
        """Up to when ``lost`` had counted them all, when it was asked at ``asked_ns``."""

    def needed(self) -> tuple[str, ...]:
        """Capabilities that it takes as long as it records."""

    def close(self) -> None:
        """Disarm them all."""

    def pauses_ms(self) -> dict[str, float]:
        """How long the guest stood still for it, by phase; empty when it did not."""

    def problems(self) -> list[str]:
        """What ``close`` found not to be as it was before, in words."""


def open_probes(
    backend: Backend,
    process: Process,
    program: Future[Program] | None = None,
    *,
    compiled: bool = False,
) -> tuple[Probes, str]:
    """The recorder that was asked for; nothing is armed yet.

    ``auto`` takes eBPF where it works and gdb elsewhere.

    Args:
        program: the BPF program, when its loading was begun before.
        compiled: else: by the bcc of this host, not as it comes with qtrace.

    Returns:
        The probes, and why it is gdb that ``auto`` has taken (else empty).

    Raises:
        RecorderUnavailable: it, or for ``auto`` neither, can be used here.
    """
    if backend == "gdb":
        return _gdb(process), ""
    # Each drags in what the other need not have installed.
    from qtrace.record.ebpf.ebpf_recorder import EbpfProbes

    try:
        # Of what is missing the program tells only that it cannot be loaded; and without links
        # a probe would be refused when it is set.
        if missing := check_ebpf():
            raise RecorderUnavailable(f"{missing.name}: {missing.detail}", missing.remedy)
        loaded = (program or load_ahead(compiled=compiled)).result()
        offset_of = process.binary.elf.offset_of
        uprobes = Uprobes(process.pid, process.exe, offset_of)
        return EbpfProbes(uprobes, loaded, process.pid), ""
    except RecorderUnavailable as error:
        if backend == "ebpf":
            raise
        try:
            return _gdb(process), error.message
        except RecorderUnavailable as also:
            raise RecorderUnavailable(
                f"neither eBPF ({error.message}) nor gdb ({also.message}) can be used here",
                f"for eBPF: {error.remedy}; for gdb: {also.remedy}",
            ) from error


def _gdb(process: Process) -> Probes:
    """Raises RecorderUnavailable."""
    from qtrace.record.gdb_recorder import GdbProbes

    return GdbProbes(process)
