"""Every bottom half of one process: arm the cheap sites, move blocks of records to the disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtrace.binary.module import Module
from qtrace.event_kinds import ARMED, DISARMED
from qtrace.inspection.qemu import LiveQemu
from qtrace.record.all_events.all_program import load_all, slot_type
from qtrace.record.all_events.busiest import Busy, busiest
from qtrace.record.all_events.record_meanings import Meanings
from qtrace.record.all_events.stack_samples import StackSamples, without_room
from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.rings import Ring, Rings, Slots
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.sites.all_plan import AllPlan, AllSite
from qtrace.trace.raw import RawWriter
from qtrace.trace.schema import NEVER, Event
from qtrace.trace.writer import CsvWriter

# Wait at most so long between two looks; at a high rate the buffers would run full.
PERIOD_S = 0.02
# From this fill on, read again at once.
BUSY_FILL = 0.125
MASK = 0xFFFFFFFF
# Records that are looked at together: their columns fit in a cache. As many of each CPU are moved
# before it is the others' turn: should the disk be full then, or qtrace be killed, there is as much
# of all of them.
STEP = 1 << 14
# What a live display looks at: so many records of each of the last blocks.
SAMPLE, SAMPLES = 2048, 15


@dataclass(frozen=True, slots=True)
class Counts:
    """Every hit of a probe of `--all`: on disk, or lost and counted."""

    produced: int
    written: int
    lost: int


class AllRecorder:
    """The probes of `--all`. Blocks go to a RawWriter, what they mean beside them.

    Attributes:
        armed: its probes are set.
        dropped: why and when they were taken off before the end; empty when they were not.
        mark: all that was noted before is on the disk.
        sampling: keep the latest records for ``busy_now``.
    """

    def __init__(
        self,
        plan: AllPlan,
        module: Module,
        pid: int,
        exe: str,
        program: Program,
        stacks_every: int = 0,
    ) -> None:
        self.plan = plan
        self._module = module
        self._uprobes = {kind: Uprobes(pid, exe, module.elf.offset_of) for kind in ARMED}
        self._program = program
        self._slot = slot_type()
        self._rings = Rings(program, self._slot)
        self._lost: dict[int, int] = {}
        # The recording's first moment, and the one after its last.
        self._since_ns, self._until_ns = 0, NEVER
        self._outside = 0
        self._checked_ns = 0
        self.mark = 0
        self._writer: RawWriter | None = None
        self._meanings: Meanings | None = None
        self._run_ip = 0
        self._stack_ips: list[int] = []
        self._bias = 0
        self.armed = False
        self.dropped: dict[str, Any] = {}
        self.sampling = False
        self._sample: list[Slots] = []
        self.stacks_every = stacks_every
        self.stacks: StackSamples | None = None
        # Events of the sites of which every Nth has one.
        self._with_stacks = 0

    @classmethod
    def load(
        cls,
        plan: AllPlan,
        module: Module,
        pid: int,
        exe: str,
        pages: int | None = None,
        stacks_every: int = 0,
        *,
        compiled: bool = False,
    ) -> AllRecorder:
        """Load the program for this plan.

        Args:
            exe: what to open for the process's executable.
            pages: of each CPU's ring buffer.
            stacks_every: the whole stack of every Nth event of a probe; 0 for none.
            compiled: by the bcc of this host, not as it comes with qtrace.

        Raises RecorderUnavailable.
        """
        program = load_all(plan, pages, stacks_every, compiled=compiled)
        return cls(plan, module, pid, exe, program, stacks_every)

    def attach(self) -> None:
        """Arm every site, in the order of qtrace/event_kinds.py. Raises CodeMismatch."""
        for kind in ARMED:
            programs = {site.program for site in self.plan.sites if site.kind == kind}
            for program in sorted(programs):
                sites = [site for site in self.plan.sites if site.program == program]
                labels = {site.vaddr: f"{site.kind}, {site.where}" for site in sites}
                self._uprobes[kind].attach(self._program.functions[program], labels)
        self.armed = True
        self._program.count_losses(True)

    def starts(self, since_ns: int) -> None:
        """All probes of the recording are set since then: what they noted before is left out."""
        self._since_ns = self._checked_ns = since_ns

    def begin(
        self,
        writer: CsvWriter | RawWriter,
        qemu: LiveQemu,
        watched: list[int],
    ) -> None:
        """Where the binary lies is known: write the header; from now on records are taken.

        Args:
            writer: a raw one.
            watched: run-time addresses of callbacks that have probes of their own.
        """
        assert isinstance(writer, RawWriter)
        bias = qemu.bias
        meanings = Meanings(qemu, self.plan.sites)
        self._writer, self._meanings, self._bias = writer, meanings, bias
        if self.stacks_every:
            self.stacks = StackSamples(self._program, qemu.unwinder, meanings.saw)
        self._stack_ips = [
            (site.vaddr + bias) & MASK
            for site in self.plan.sites
            if site.kind in ("run", "enqueue")
        ]
        self._run_ip = next(s.vaddr + bias for s in self.plan.sites if s.kind == "run") & MASK
        sites = [self._describe(site, bias) for site in self.plan.sites]
        writer.begin(
            self._slot,
            {
                "sites": sites,
                "watched_callbacks": watched,
                "return_to": self._name(self.plan.returns_to),
            },
        )

    def _name(self, vaddr: int) -> str:
        found = self._module.function_name(vaddr)
        return f"{found[0]}+{found[1]:#x}" if found else f"{self._module.name}@{vaddr:#x}"

    def _describe(self, site: AllSite, bias: int) -> dict[str, Any]:
        ip = (site.vaddr + bias) & MASK
        inside = site.where if site.inlined else ""
        return {
            "ip": ip, "kind": site.kind, "new_flags": site.new_flags, "inside": inside,
            "shared": site.shared,
        }  # fmt: skip

    def describe(self) -> list[dict[str, Any]]:
        """The probes, for the header of the trace and for people."""
        return [
            {
                "kind": site.kind,
                "where": site.where,
                "address": f"{site.vaddr:#x}",
                "instruction": site.instruction,
                "emulated": site.emulated,
                "shared": site.shared,
            }
            for site in self.plan.sites
        ]

    def drain(self, mark: int) -> list[Event]:
        """Move what is there to the file; the losses since the last time.

        Args:
            mark: a time before the call; what happened earlier is all in the file then, rows
                of other probes included.

        Raises OutputFailed.
        """
        writer, meanings = self._writer, self._meanings
        if writer is None or meanings is None:
            return []
        facts: dict[str, Any] = {}
        rings, whole = self._rings.rings, True
        # All that was noted before the mark waits in them now.
        due = [ring.waiting for ring in rings]
        oldest = [ring.oldest(n) for ring, n in zip(rings, due, strict=True) if max(due) > STEP]
        while any(due):
            for place, ring in enumerate(rings):
                wanted = min(due[place], STEP)
                taken = self._take_from(ring, wanted, facts)
                # An unfinished record, and what lies behind it, waits for the next time.
                whole = whole and taken == wanted
                due[place] = due[place] - taken if taken == wanted else 0
            if whole and any(due):
                # Should this be the end, all CPUs' records are there up to the same moment.
                left = [times[-n] for times, n in zip(oldest, due, strict=True) if n]
                writer.append_facts(facts, min(mark, *map(int, left)))
                facts = {}
        for key, found in meanings.again().items():
            facts.setdefault(key, {}).update(found)
        if self.stacks is not None:
            facts |= self.stacks.take(self._since_ns, self._until_ns)
        # An unfinished record may be older than the mark: then the last one still holds.
        self.mark = mark if whole else self.mark
        losses = self._losses()
        writer.write(losses)
        writer.flush()
        writer.append_facts(facts, self.mark)
        return losses

    def patience(self, timeout_s: float) -> float:
        """How much of that there is until the next ``drain``; none when the buffers fill fast."""
        return 0.0 if self._rings.fill > BUSY_FILL else min(timeout_s, PERIOD_S)

    def busy_now(self) -> tuple[list[tuple[str, float]], list[tuple[str, Busy]]]:
        """Since the last time, from a sample: each context's share, the busiest bottom halves."""
        blocks, self._sample = self._sample, []
        if not blocks or self._meanings is None:
            return [], []
        sample = np.concatenate(blocks)
        ips = {k: [(s.vaddr + self._bias) & MASK for s in self.plan.sites if s.kind == k]
               for k in ("run", "return", "enqueue")}  # fmt: skip
        rows = busiest(sample, ips["run"][0], ips["return"][0], ips["enqueue"])
        names = self._meanings.names
        found, counts = np.unique(sample["ctx"][sample["ctx"] != 0], return_counts=True)
        total = max(int(counts.sum()), 1)
        contexts: dict[str, float] = {}
        for ctx, count in zip(found.tolist(), counts.tolist(), strict=True):
            name = self._meanings.context(ctx)
            contexts[name] = contexts.get(name, 0.0) + count / total
        return list(contexts.items()), [(names.get(row.name, "?"), row) for row in rows]

    @property
    def counts(self) -> Counts:
        written = self._writer.records if self._writer else 0
        lost = sum(self._lost.values())
        return Counts(self._rings.produced - self._outside + lost, written, lost)

    @property
    def stacks_without_room(self) -> str:
        """See ``without_room``."""
        if self.stacks is None:
            return ""
        return without_room(self.stacks.count, self._with_stacks // self.stacks_every)

    def disarm(self, until_ns: int) -> None:
        """End at a moment that has just passed, and take the probes off, one after the other;
        records that are in the buffers stay."""
        self._until_ns = min(self._until_ns, until_ns)
        if self.armed:
            self._program.count_losses(False)
        for kind in DISARMED:
            self._uprobes[kind].close()
        self.armed = False

    def drop(self, reason: str) -> None:
        """Disarm before the end; the trace says when and why."""
        now = time.monotonic_ns()
        self.dropped = {"dropped_ns": now, "dropped": reason}
        self.disarm(now)

    def finish(self) -> list[Event]:
        """Take what is left when it is disarmed. Raises OutputFailed."""
        losses = self.drain(time.monotonic_ns())
        if self._writer is not None and self._meanings is not None:
            self._writer.append_facts(self._meanings.finish())
        return losses

    def close(self) -> None:
        self.disarm(time.monotonic_ns())
        self._rings.close()

    def _take_from(self, ring: Ring, count: int, facts: dict[str, Any]) -> int:
        """Move so many records of a ring, fewer where one is unfinished; how many."""
        left = count
        while left:
            slots = ring.peek(left)
            if not len(slots):
                break
            self._take(slots, facts)
            ring.release(len(slots))
            left -= len(slots)
        return count - left

    def _take(self, slots: Slots, facts: dict[str, Any]) -> None:
        writer, meanings = self._writer, self._meanings
        if writer is None or meanings is None:
            return
        slots = self._inside(slots)
        writer.append_records(slots)
        if self.stacks is not None:
            self._with_stacks += int(np.isin(slots["ip"], self._stack_ips).sum())
        for at in range(0, len(slots), STEP):
            for key, found in meanings.of(slots[at : at + STEP], self._run_ip).items():
                facts.setdefault(key, {}).update(found)
        if self.sampling:
            self._sample = [*self._sample[-SAMPLES:], slots[-SAMPLE:].copy()]

    def _inside(self, slots: Slots) -> Slots:
        """Without what was noted while not all probes were set."""
        if self.mark >= self._since_ns and self._until_ns == NEVER:
            return slots
        times = slots["time_ns"]
        inside = (times >= np.uint64(self._since_ns)) & (times < np.uint64(self._until_ns))
        if inside.all():
            return slots
        self._outside += int((~inside).sum())
        return slots[inside]

    def _losses(self) -> list[Event]:
        begin = time.monotonic_ns()
        counts = list(self._program.counts("lost"))
        # Whatever they count was lost before now.
        now = time.monotonic_ns()
        rows = []
        for ip, count in counts:
            new = count - self._lost.get(ip, 0)
            if new:
                self._lost[ip] = count
                detail = {
                    "count": new,
                    "since_ns": self._checked_ns,
                    "site": self._label(ip),
                    "probes": "all",
                }
                rows.append(Event(now, "lost", detail=detail))
        self._checked_ns = begin
        return rows

    def _label(self, ip: int) -> str:
        for site in self.plan.sites:
            if (ip & MASK) == (site.vaddr + self._bias) & MASK:
                return f"--all {site.kind}"
        return "--all"
