"""From raw hits to event rows: names, roles, contexts and stacks."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace

from qtrace.recorder.commands import STEPS, Commands
from qtrace.target import stack
from qtrace.target.arch_x86_64 import ARGUMENTS, CALLEE_SAVED, RSP
from qtrace.target.contexts import ContextNames
from qtrace.target.hit import Hit
from qtrace.target.stack import CopiedStack, Unwinder
from qtrace.target.threads import ThreadRoles
from qtrace.target.watch import Site
from qtrace.trace.schema import COROUTINE, TRUNCATED, UNREADABLE, Event

# A chain that does not reach its thread's first function says so at its root.
ROOT_MARKS = {
    stack.COROUTINE: COROUTINE,
    stack.TRUNCATED: TRUNCATED,
    stack.UNREADABLE: UNREADABLE,
}


class RowMaker:
    """Makes the rows of one recording. ``hits`` counts the hits by site."""

    def __init__(
        self,
        sites: dict[int, Site],
        unwinder: Unwinder,
        roles: ThreadRoles,
        contexts: ContextNames,
        commands: Commands,
    ) -> None:
        self._sites = sites
        self._unwinder = unwinder
        self._roles = roles
        self._contexts = contexts
        self._commands = commands
        # Runs that have not returned, by thread and stack pointer.
        self._running: dict[tuple[int, int], Event] = {}
        self.hits: Counter[Site] = Counter()

    def rows(self, hit: Hit) -> list[Event]:
        """The rows of one hit; a command that passes quickly has none (``Commands``)."""
        site = self._sites[hit.address]
        self.hits[site] += 1
        if site.kind == "qmp" and site.name in STEPS:
            return self._commands.step(site.name, hit, self._roles.role(hit.tid, hit.thread))
        row = self._returned(site, hit) if site.kind == "return" else self._row(site, hit)
        # Something happened while a command was under way: it is worth its rows.
        return [*self._commands.show(), row]

    def _row(self, site: Site, hit: Hit) -> Event:
        frames = frames_of(hit, self._unwinder)
        role = self._roles.role(hit.tid, hit.thread, frames)
        name, detail = site.name, {}
        first, second, third = (hit.registers[register] for register in ARGUMENTS[:3])
        ctx = bh = callback = opaque = 0
        if site.kind == "schedule":
            ctx, callback, opaque = first, second, third
        elif site.kind == "run":
            callback, opaque = hit.address, first
            bh, ctx = find_bottom_half(hit, callback, opaque)
            if role == "iothread" and not self._contexts.name(ctx):
                iothread = self._roles.iothread_id(hit.tid, hit.thread)
                self._contexts.learn(ctx, f"iothread:{iothread}")
        elif site.kind == "job":
            name = self._commands.text(hit, ARGUMENTS[0])
            detail = {"status": self._commands.status(second & 0xFFFFFFFF)}
        elif site.kind == "qmp":
            detail = {"step": "event"}
        row = Event(
            time_ns=hit.time_ns,
            event=site.kind,
            tid=hit.tid,
            thread=hit.thread,
            role=role,
            name=name,
            context=self._contexts.name(ctx),
            ctx=ctx,
            bh=bh,
            callback=callback,
            opaque=opaque,
            stack=frames,
            detail=detail,
        )
        if site.kind == "run":
            self._running[hit.tid, hit.registers[RSP]] = row
        return row

    def _returned(self, site: Site, hit: Hit) -> Event:
        """A return has the facts of its run, which had the same stack pointer."""
        run = self._running.pop((hit.tid, hit.registers[RSP]), None)
        if run is None or run.name != site.name:
            run = Event(0, "run", name=site.name)
        return replace(
            run, time_ns=hit.time_ns, event="return", tid=hit.tid, thread=hit.thread,
            role=run.role or self._roles.role(hit.tid, hit.thread), stack=(),
        )  # fmt: skip


def frames_of(hit: Hit, unwinder: Unwinder) -> tuple[str, ...]:
    """Frame names, root first, with a mark where the chain is not whole."""
    memory = CopiedStack(hit.stack_base, hit.stack)
    chain = unwinder.unwind(hit.registers, memory.word)
    names = unwinder.names(chain)
    mark = ROOT_MARKS.get(chain.end)
    return tuple(reversed([*names, mark] if mark else names))


def find_bottom_half(hit: Hit, callback: int, opaque: int) -> tuple[int, int]:
    """The QEMUBH and its context at a callback's entry, (0, 0) when no register holds it.

    One of the callee-saved registers of aio_bh_call() or aio_bh_poll() points to the
    bottom half; which one is the compiler's choice. The right one is known by what it
    points at: {ctx, [name,] cb, opaque, ...} with this very cb and opaque (``name`` came
    with 0f08586c71, 6.2).
    """
    for register in CALLEE_SAVED:
        words = struct.unpack("<8Q", hit.behind(register))
        if words[2:4] == (callback, opaque) or words[1:3] == (callback, opaque):
            return hit.registers[register], words[0]
    return 0, 0
