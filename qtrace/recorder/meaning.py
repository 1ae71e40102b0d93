"""What the numbers in the records of `--all` mean, asked of the target while it is there."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qtrace.errors import NoSuchProcess
from qtrace.recorder.fresh import Fresh
from qtrace.recorder.rings import Slots
from qtrace.target.contexts import ContextNames
from qtrace.target.process import Process
from qtrace.target.stack import Unwinder
from qtrace.target.threads import ThreadRoles

MAX_NAME = 256
# How often, and how many times, a thread of unknown role is looked at.
LOOK_PERIOD_S, LOOKS = 0.05, 200


class Meanings:
    """Texts for names, code addresses, threads and contexts, each asked for once.

    Attributes:
        names: of bottom halves, by pointer, as far as they were seen.
    """

    def __init__(
        self, process: Process, unwinder: Unwinder, roles: ThreadRoles, contexts: ContextNames
    ) -> None:
        self._process = process
        self._unwinder = unwinder
        self._roles = roles
        self._contexts = contexts
        self._program = process.program[:15]
        self._fresh = {key: Fresh() for key in ("name", "callback", "inner", "outer", "tid", "ctx")}
        self.names: dict[int, str] = {}
        self._nameless: set[int] = set()
        self._threads: dict[int, str] = {}
        self._unsure: dict[int, int] = {}
        self._next_look = 0.0

    def of(self, slots: Slots, run_ip: int) -> dict[str, Any]:
        """Facts that are new with these records; empty when there are none."""
        self._look_again()
        fresh = self._fresh
        named = {p: self._string(p) for p in fresh["name"].of(slots["name"])}
        self.names.update(named)
        facts: dict[str, Any] = {
            "names": {f"{p:x}": text for p, text in named.items()},
            "symbols": self._symbols(slots),
            "threads": {str(tid): self._thread(tid) for tid in fresh["tid"].of(slots["tid"])},
            "contexts": self._context_names(slots, run_ip),
        }
        return {key: value for key, value in facts.items() if value}

    def context(self, ctx: int) -> str:
        """A context's name, empty when it is not known."""
        return self._contexts.name(ctx)

    def threads(self) -> dict[str, tuple[str, str]]:
        """All threads that were seen, with the roles as they are known by now."""
        return {
            str(tid): (name, self._roles.role(tid, name)) for tid, name in self._threads.items()
        }

    def _string(self, address: int) -> str:
        raw = self._process.memory.read(address, MAX_NAME).split(b"\0", 1)[0]
        return raw.decode("utf-8", "surrogateescape")

    def _symbols(self, slots: Slots) -> dict[str, str]:
        fresh = self._fresh
        callers = slots["caller"]
        returns = {*fresh["inner"].of(callers[:, 0]), *fresh["outer"].of(callers[:, 1])}
        found = {pc: self._unwinder.return_name(pc) for pc in returns}
        for pc in fresh["callback"].of(slots["callback"]):
            found[pc] = self._unwinder.name(pc, leaf=True)
        return {f"{pc:x}": text for pc, text in found.items() if text}

    def _thread(self, tid: int) -> tuple[str, str]:
        try:
            names = self._process.threads()
        except NoSuchProcess:
            names = {}
        # A thread that is gone already had its program's name, unless it was given another.
        name = names.get(tid, self._program)
        self._threads[tid] = name
        role = self._roles.look(tid, name, self._unwinder)
        if role == "other":
            self._unsure[tid] = LOOKS
        return name, role

    def _look_again(self) -> None:
        """An IOThread shows itself when it is met waiting in its loop."""
        now = time.monotonic()
        if not self._unsure or now < self._next_look:
            return
        self._next_look = now + LOOK_PERIOD_S
        for tid, looks in list(self._unsure.items()):
            if self._roles.look(tid, self._threads[tid], self._unwinder) != "other" or looks <= 1:
                del self._unsure[tid]
            else:
                self._unsure[tid] = looks - 1

    def _context_names(self, slots: Slots, run_ip: int) -> dict[str, str]:
        self._nameless.update(self._fresh["ctx"].of(slots["ctx"]))
        found = {}
        for ctx in list(self._nameless):
            name = self._contexts.name(ctx) or self._owner(slots, ctx, run_ip)
            if name:
                found[f"{ctx:x}"] = name
                self._nameless.discard(ctx)
        return found

    def _owner(self, slots: Slots, ctx: int, run_ip: int) -> str:
        """The IOThread that runs a context's bottom halves."""
        runs = slots["tid"][(slots["ctx"] == ctx) & (slots["ip"] == np.uint32(run_ip))]
        for tid in np.unique(runs).tolist():
            name = self._threads.get(tid, "")
            if self._roles.role(tid, name) == "iothread":
                self._contexts.learn(ctx, f"iothread:{self._roles.iothread_id(tid, name)}")
        return self._contexts.name(ctx)
