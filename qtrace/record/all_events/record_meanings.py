"""What the numbers in the records of `--all` mean, asked of the target while it is there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qtrace.errors import NoSuchProcess
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.thread_roles import look_at
from qtrace.record.all_events.all_program import slot_type
from qtrace.record.all_events.unseen import FreshRecords, FreshValues
from qtrace.record.ebpf.rings import Slots
from qtrace.roles import role_of_stack
from qtrace.sites.all_plan import AllSite

MAX_NAME = 256
# How often, and how many times, a thread of unknown role is looked at: to unwind one takes two
# milliseconds, a thread pool has dozens, and nobody empties the ring buffers meanwhile.
LOOK_PERIOD_S, LOOKS, LOOK_BUDGET_S = 0.05, 200, 0.002
# When the recording has ended nothing waits.
LAST_BUDGET_S = 0.5


class Meanings:
    """Texts for names, code addresses, threads and contexts, each asked for once.

    Attributes:
        names: of bottom halves, by pointer, as far as they were seen.
    """

    def __init__(self, qemu: LiveQemu, sites: Iterable[AllSite] = ()) -> None:
        """``sites``: the probes whose records they are."""
        self._qemu = qemu
        self._unwinder = qemu.unwinder
        self._roles = qemu.roles
        self._contexts = qemu.contexts
        self._program = qemu.program[:15]
        # All that is read of a record is one of these, or shares a word with one (its probe).
        fields = ("tid", "ctx", "name", "callback", "caller")
        self._records = FreshRecords(slot_type(), fields)
        self._fresh = {
            key: FreshValues() for key in ("name", "callback", "inner", "outer", "tid", "ctx")
        }
        self.names: dict[int, str] = {}
        self._runners: dict[int, set[int]] = {}
        self._threads: dict[int, str] = {}
        # Looks that a thread is still worth, and whose turn it is.
        self._unsure: dict[int, int] = {}
        self._due: list[int] = []
        self._next_look = 0.0
        # Return addresses in functions that only one kind of thread begins with.
        self._telling: dict[int, str] = {}
        # ... and probes in such functions themselves, by the low half of their address.
        self._telling_sites = {
            (site.vaddr + qemu.bias) & 0xFFFFFFFF: site.where
            for site in sites
            if site.inlined and role_of_stack([site.where])
        }

    def of(self, slots: Slots, run_ip: int) -> dict[str, Any]:
        """Facts that are new with these records; empty when there are none."""
        slots = self._records.of(slots)
        if not len(slots):
            return {}
        fresh = self._fresh
        # First what may be gone any moment: all else can be read of files, too.
        tids = fresh["tid"].of(slots["tid"])
        self._name_threads(tids)
        named = {p: self._string(p) for p in fresh["name"].of(slots["name"])}
        self.names.update(named)
        symbols = self._symbols(slots)
        if tids or self._unsure:
            self._learn_from_callers(slots)
        facts: dict[str, Any] = {
            "names": {f"{p:x}": text for p, text in named.items()},
            "symbols": symbols,
            "threads": {str(tid): (self._threads[tid], self._role(tid)) for tid in tids},
        }
        self._runners_of_nameless(slots, run_ip)
        return {key: value for key, value in facts.items() if value}

    def saw(self, tid: int, name: str, frames: Sequence[str]) -> None:
        """Take what a stack tells of its thread."""
        self._roles.role(tid, name, frames)

    def context(self, ctx: int) -> str:
        """A context's name, empty when it is not known."""
        return self._contexts.name(ctx)

    def finish(self) -> dict[str, Any]:
        """A last look, while the process may still be there; all threads with their roles."""
        self._next_look = 0.0
        facts = self.again(LAST_BUDGET_S)
        return facts | {"threads": self.threads()}

    def threads(self) -> dict[str, tuple[str, str]]:
        """All threads that were seen, with the roles as they are known by now."""
        return {
            str(tid): (name, self._roles.role(tid, name)) for tid, name in self._threads.items()
        }

    def _string(self, address: int) -> str:
        raw = self._qemu.memory.read(address, MAX_NAME)
        if not raw:
            # The process is gone; a literal still lies in its file.
            binary = self._qemu.binary
            raw = binary.elf.read(address - binary.bias, MAX_NAME)
        return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")

    def _symbols(self, slots: Slots) -> dict[str, str]:
        fresh = self._fresh
        callers = slots["caller"]
        returns = {*fresh["inner"].of(callers[:, 0]), *fresh["outer"].of(callers[:, 1])}
        found = {pc: self._unwinder.return_name(pc) for pc in returns}
        self._telling |= {pc: text for pc, text in found.items() if role_of_stack([text])}
        for pc in fresh["callback"].of(slots["callback"]):
            found[pc] = self._unwinder.name(pc, leaf=True)
        return {f"{pc:x}": text for pc, text in found.items() if text}

    def _name_threads(self, tids: list[int]) -> None:
        if tids:
            try:
                names = self._qemu.process.threads()
            except NoSuchProcess:
                names = {}
            # One that was gone already had its program's name, unless it was given another.
            self._threads.update({tid: names.get(tid, self._program) for tid in tids})

    def _role(self, tid: int) -> str:
        """What its name tells; where that is nothing, it is looked at when there is time."""
        role = self._roles.role(tid, self._threads[tid])
        if role == "other":
            self._unsure[tid] = LOOKS
            self._due.append(tid)
        return role

    def _learn_from_callers(self, slots: Slots) -> None:
        """A thread shows itself, too, when the function that it began with schedules or polls."""
        callers, tids = slots["caller"], slots["tid"]
        told = [
            *((text, (callers == np.uint64(pc)).any(axis=1)) for pc, text in self._telling.items()),
            *((text, slots["ip"] == np.uint32(ip)) for ip, text in self._telling_sites.items()),
        ]
        for text, rows in told:
            # numpy.unique() alone imports numpy.ma, which takes more than a MB.
            for tid in set(tids[rows].tolist()):
                self._unsure.pop(tid, 0)
                self._roles.role(tid, self._threads[tid], [text])

    def _look_again(self, budget_s: float) -> None:
        """A thread shows itself when it is met waiting where only its kind waits."""
        now = time.monotonic()
        if not self._due and now >= self._next_look:
            self._next_look = now + LOOK_PERIOD_S
            self._due = list(self._unsure)
        while self._due and time.monotonic() - now < budget_s:
            tid = self._due.pop()
            looks = self._unsure.pop(tid, 0) - 1
            role = look_at(self._qemu, tid, self._threads[tid])
            if role == "other" and looks > 0:
                self._unsure[tid] = looks

    def _runners_of_nameless(self, slots: Slots, run_ip: int) -> None:
        """Remember which threads run the bottom halves of contexts that have no name yet."""
        for ctx in self._fresh["ctx"].of(slots["ctx"]):
            self._runners[ctx] = set()
        for ctx, tids in self._runners.items():
            runs = slots["tid"][(slots["ctx"] == ctx) & (slots["ip"] == np.uint32(run_ip))]
            tids.update(runs.tolist())

    def again(self, budget_s: float = LOOK_BUDGET_S) -> dict[str, Any]:
        """What is known by now and was not before: names of contexts."""
        self._look_again(budget_s)
        found = {}
        for ctx, tids in list(self._runners.items()):
            for tid in tids:
                name = self._threads.get(tid, "")
                if self._roles.role(tid, name) == "iothread":
                    self._contexts.learn(ctx, f"iothread:{self._roles.iothread_id(tid, name)}")
            if text := self._contexts.name(ctx):
                found[f"{ctx:x}"] = text
                del self._runners[ctx]
        return {"contexts": found} if found else {}
