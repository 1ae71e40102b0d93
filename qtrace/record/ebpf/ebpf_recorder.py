"""eBPF uprobes: sites in, raw hits out. Never stops the target; no return probe."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path

from qtrace.errors import RecorderUnavailable
from qtrace.host.capabilities import capabilities
from qtrace.host.pid_namespace import namespace_of, own_namespace
from qtrace.machine.architectures import HOST
from qtrace.machine.memory import PAGE
from qtrace.machine.stat_file import STARTSTACK, stat_fields
from qtrace.process.hit import CANDIDATES, QEMUBH_BYTES, Hit
from qtrace.record.ebpf.backlog import Backlog, Raw
from qtrace.record.ebpf.bpf_image import Layout
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.sites.watch_plan import Site

# probes/stack.h sends registers in the order of their DWARF numbers, the pc last.
PC, SP = HOST.pc, HOST.stack_pointer
FIRST, SECOND = HOST.arguments[:2]
# So many hits are handed out at a time: a few milliseconds of work.
STEP = 256
# Of what the registers of a hit point at, a step has but one of the arguments, which come last.
ABOVE = tuple(bytes(QEMUBH_BYTES * CANDIDATES.index(register)) for register in (FIRST, SECOND))
BELOW = (bytes(QEMUBH_BYTES), b"")


class EbpfProbes:
    """The armed uprobes of one process; see ``qtrace.record.probes.Probes``.

    Attributes:
        note: of its BPF program, see there.
    """

    name = "ebpf"

    def __init__(self, uprobes: Uprobes, program: Program, pid: int) -> None:
        """Raises RecorderUnavailable: the kernel cannot tell its threads by their ids here."""
        own, other = own_namespace(), namespace_of(pid)
        if not own.is_first and other not in (own, None):
            raise RecorderUnavailable(
                f"process {pid} is in a pid namespace below this one, which is not the host's: "
                "its threads have other ids here than in the kernel",
                "run qtrace on the host, or in the pid namespace of that QEMU",
            )
        self._uprobes = uprobes
        self._program = program
        self.note = program.note
        self._pid = pid
        self._read_hit = HitReader(program.layouts["events"])
        self._read_step = StepReader(program.layouts["steps"])
        self._backlog: Backlog | None = None

    def attach(self, sites: Sequence[Site]) -> None:
        """Arm a probe at each site. Raises CodeMismatch when one cannot be set."""
        if not sites:
            return
        if self._backlog is None:
            self._program.set_main_stack(main_stack(self._pid))
            self._backlog = Backlog(self._program)
        for name, function in self._program.functions.items():
            labels = {site.vaddr: site.label for site in sites if function_of(site) == name}
            self._uprobes.attach(function, labels)

    def count_losses(self, on: bool) -> None:
        self._program.count_losses(on)

    def poll(self, timeout_s: float) -> list[Hit]:
        if self._backlog is None:
            time.sleep(timeout_s)
            return []
        self._backlog.wait(timeout_s)
        return self._take(self._backlog, time.monotonic_ns())

    def drain(self) -> list[Hit]:
        hits: list[Hit] = []
        if self._backlog is not None:
            until_ns = time.monotonic_ns()
            while taken := self._take(self._backlog, until_ns):
                hits += taken
        return hits

    def oldest_ns(self) -> int | None:
        return self._backlog.oldest_ns() if self._backlog else None

    def whole_stack(self, base: int, end: int) -> None:
        self._program.set_stack_end(base // PAGE, end)

    def lost(self) -> dict[int, int]:
        """Hits that found no room in their ring buffer so far, by run-time address."""
        return dict(self._program.counts("lost"))

    def counted_ns(self, asked_ns: int) -> int:
        return asked_ns

    def needed(self) -> tuple[str, ...]:
        if self._program.is_open_to_all():
            return ()
        return ("CAP_BPF" if "CAP_BPF" in capabilities() else "CAP_SYS_ADMIN",)

    def close(self) -> None:
        """Disarm all probes."""
        self._uprobes.close()
        if self._backlog is not None:
            self._backlog.close()

    def pauses_ms(self) -> dict[str, float]:
        return {}

    def problems(self) -> list[str]:
        return []

    def _take(self, backlog: Backlog, until_ns: int) -> list[Hit]:
        return [self._hit(raw) for raw in backlog.take(STEP, until_ns)]

    def _hit(self, raw: Raw) -> Hit:
        _time_ns, record, is_step = raw
        return self._read_step(record) if is_step else self._read_hit(record)


def function_of(site: Site) -> str:
    """The function of probes/watch.bpf.c that belongs at a site."""
    if not site.is_step:
        return "on_hit"
    if site.kind == "return":
        return "on_return"
    if site.name != "command":
        return "on_step"
    return "on_command" if HOST.arguments[site.argument] == SECOND else "on_command_fifth"


def main_stack(pid: int) -> int:
    """Where the kernel began a process's first stack (above lie arguments and environment); 0
    where it does not tell."""
    try:
        fields = stat_fields(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except OSError:
        return 0
    return int(fields[STARTSTACK])


class HitReader:
    """From a ``struct watch_event``, or what there is of it without a stack, to a hit."""

    def __init__(self, layout: Layout) -> None:
        """``layout``: offset and size of its fields."""
        self._time, self._tid = layout["time_ns"][0], layout["tid"][0]
        self._registers = struct.Struct(f"<{PC + 1}Q")
        self._registers_at = layout["registers"][0]
        self._bounds = struct.Struct("<II")
        self._bounds_at = layout["stack_start"][0]
        self._comm, self._candidates = _slice(layout["comm"]), _slice(layout["candidates"])
        self._stack = layout["stack"][0]

    def __call__(self, record: bytes) -> Hit:
        registers = self._registers.unpack_from(record, self._registers_at)
        start, end = self._bounds.unpack_from(record, self._bounds_at)
        return Hit(
            time_ns=_integer(record, self._time, 8),
            tid=_integer(record, self._tid, 4),
            thread=_text(record[self._comm]),
            registers=dict(enumerate(registers)),
            candidates=record[self._candidates],
            stack_base=registers[SP],
            stack=record[self._stack + start : self._stack + end],
        )


class StepReader:
    """From a ``struct step_event`` to a hit that knows four registers and has no stack."""

    def __init__(self, layout: Layout) -> None:
        names = ("time_ns", "ip", "sp", "first", "second", "tid", "text_of")
        self._fields = struct.Struct("<5Q2I")
        if [layout[name][0] for name in names] != [0, 8, 16, 24, 32, 40, 44]:
            raise ValueError("struct step_event is laid out otherwise")
        self._comm, self._text = _slice(layout["comm"]), _slice(layout["text"])

    def __call__(self, record: bytes) -> Hit:
        time_ns, ip, sp, first, second, tid, text_of = self._fields.unpack_from(record)
        text = record[self._text]
        return Hit(
            time_ns=time_ns,
            tid=tid,
            thread=_text(record[self._comm]),
            registers={PC: ip, SP: sp, FIRST: first, SECOND: second},
            candidates=ABOVE[text_of] + text + BELOW[text_of],
            stack_base=sp,
            stack=b"",
        )


def _slice(field: tuple[int, int]) -> slice:
    return slice(field[0], field[0] + field[1])


def _integer(record: bytes, offset: int, size: int) -> int:
    return int.from_bytes(record[offset : offset + size], "little")


def _text(comm: bytes) -> str:
    return comm.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
