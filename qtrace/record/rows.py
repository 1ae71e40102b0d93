"""From raw hits to event rows: names, roles, contexts and stacks."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from qtrace.inspection.qemu import Qemu
from qtrace.machine.architectures import HOST
from qtrace.process.hit import Hit
from qtrace.qemu.aio.layout import begins_bottom_half
from qtrace.record.hit_stacks import Stacks
from qtrace.record.qmp_rows import STEPS, Commands
from qtrace.sites.watch_plan import Site
from qtrace.trace.schema import Event

ARGUMENTS, PC, SP = HOST.arguments, HOST.pc, HOST.stack_pointer


class RowMaker:
    """Makes the rows of one recording."""

    def __init__(
        self,
        sites: dict[int, Site],
        qemu: Qemu,
        commands: Commands,
        whole_stack: Callable[[int, int], None] = lambda base, end: None,
    ) -> None:
        self._sites = sites
        self._stacks = Stacks(qemu.unwinder, whole_stack)
        self._roles = qemu.roles
        self._contexts = qemu.contexts
        self._commands = commands
        # Runs that have not returned, by thread and stack pointer.
        self._running: dict[tuple[int, int], Event] = {}
        self._counts: Counter[int] = Counter()

    @property
    def hits(self) -> dict[Site, int]:
        """How many came of each site."""
        return {self._sites[address]: count for address, count in self._counts.items()}

    def rows(self, hit: Hit) -> list[Event]:
        """The rows of one hit; a command that passes quickly has none (``Commands``)."""
        address = hit.address
        site = self._sites[address]
        self._counts[address] += 1
        if site.past:
            # As at the function's first instruction, which did nothing.
            registers = {**hit.registers, PC: address - site.past}
            hit = replace(hit, registers=registers)
        if site.kind == "qmp" and site.name in STEPS:
            return self._commands.step(site.name, hit, self._roles.role(hit.tid, hit.thread))
        row = self._returned(site, hit) if site.kind == "return" else self._row(site, hit)
        # Something happened while a command was under way: it is worth its rows.
        return [*self._commands.show(), row]

    def _row(self, site: Site, hit: Hit) -> Event:
        if site.is_step:
            return self._step(site, hit)
        frames = self._stacks.frames(hit)
        role = self._roles.role(hit.tid, hit.thread, frames)
        first, second, third = (hit.registers[register] for register in ARGUMENTS[:3])
        ctx = bh = callback = opaque = 0
        if site.kind == "schedule":
            # Where aio_bh_schedule_oneshot_full() is inlined there is a finished QEMUBH instead.
            behind = hit.behind(ARGUMENTS[0])
            of_bh = [struct.unpack_from("<Q", behind, offset)[0] for offset in site.fields]
            ctx, callback, opaque = of_bh or (first, second, third)
        elif site.kind == "run":
            callback, opaque = hit.address, first
            bh, ctx = find_bottom_half(hit, callback, opaque)
            if role == "iothread" and not self._contexts.name(ctx):
                iothread = self._roles.iothread_id(hit.tid, hit.thread)
                self._contexts.learn(ctx, f"iothread:{iothread}")
        row = Event(
            time_ns=hit.time_ns,
            event=site.kind,
            tid=hit.tid,
            thread=hit.thread,
            role=role,
            name=site.name,
            context=self._contexts.name(ctx),
            ctx=ctx,
            bh=bh,
            callback=callback,
            opaque=opaque,
            stack=frames,
        )
        if site.kind == "run":
            self._running[hit.tid, hit.registers[SP]] = row
        return row

    def _step(self, site: Site, hit: Hit) -> Event:
        """An event of QMP's, or a change of a job: where it comes from tells nothing."""
        name, detail = site.name, {"step": "event"}
        if site.kind == "job":
            name = self._commands.text(hit, ARGUMENTS[0])
            status = hit.registers[ARGUMENTS[1]] & 0xFFFFFFFF
            detail = {"status": self._commands.status(status)}
        role = self._roles.role(hit.tid, hit.thread)
        return Event(hit.time_ns, site.kind, hit.tid, hit.thread, role, name, detail=detail)

    def _returned(self, site: Site, hit: Hit) -> Event:
        """A return has the facts of its run, which had the same stack pointer."""
        run = self._running.pop((hit.tid, hit.registers[SP]), None)
        if run is None or run.name != site.name:
            run = Event(0, "run", name=site.name)
        return replace(
            run, time_ns=hit.time_ns, event="return", tid=hit.tid, thread=hit.thread,
            role=run.role or self._roles.role(hit.tid, hit.thread), stack=(),
        )  # fmt: skip


def find_bottom_half(hit: Hit, callback: int, opaque: int) -> tuple[int, int]:
    """The QEMUBH and its context at a callback's entry, (0, 0) when no register holds it.

    One of the callee-saved registers of aio_bh_call() or aio_bh_poll() points to the
    bottom half; which one is the compiler's choice. The right one is known by what it
    points at: a QEMUBH with this very cb and opaque.
    """
    for register in HOST.callee_saved:
        words = struct.unpack("<8Q", hit.behind(register))
        if begins_bottom_half(words, callback, opaque):
            return hit.registers[register], words[0]
    return 0, 0
