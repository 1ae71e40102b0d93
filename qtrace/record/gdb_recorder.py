"""Breakpoints by gdb at the sites that eBPF would probe: the same hits, at another price.

For hosts where eBPF is unavailable. The whole process stands still for some milliseconds
when gdb attaches and detaches, and for less than one at each hit; the watched sites are rare.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from qtrace.gdb.channel import Message
from qtrace.gdb.checks import check_usable, refuse_unstoppable
from qtrace.gdb.gdb_session import GdbSession
from qtrace.gdb.stop_registers import CAPTURE, hit_of
from qtrace.host.privileges import CAPABILITIES
from qtrace.machine.arch_x86_64 import ARGUMENTS, REGISTER_NAMES
from qtrace.process.hit import Hit
from qtrace.process.process import Process
from qtrace.sites.watch_plan import Site

# What qtrace/gdb/inside/record_hits.py does at the steps of a QMP command that has been taken.
STEPS = {"begin": "steps", "end": "steps", "reply": "replies"}


class GdbProbes:
    """The armed breakpoints of one process; see ``qtrace.record.probes.Probes``."""

    name = "gdb"
    note = ""

    def __init__(self, process: Process) -> None:
        """Raises RecorderUnavailable, TargetError: see ``qtrace.gdb.checks``."""
        check_usable(process)
        refuse_unstoppable(process)
        self._process = process
        self._session: GdbSession | None = None
        self._lost: dict[int, int] = {}
        self._counted_ns = 0
        self._hits: list[Hit] = []

    def attach(self, sites: Sequence[Site]) -> None:
        bias = self._process.binary.bias
        groups: dict[str, list[int]] = {"sites": [], "steps": [], "replies": []}
        commands: list[tuple[int, str]] = []
        for site in sites:
            address = site.vaddr + bias
            if site.kind == "qmp" and site.name == "command":
                commands.append((address, REGISTER_NAMES[ARGUMENTS[site.argument]]))
                continue
            group = STEPS.get(site.name, "sites") if site.kind == "qmp" else "sites"
            groups[group].append(address)
        stops = [site.vaddr + bias for site in sites]
        config = {
            "kind": "record", "stops": stops, "capture": CAPTURE, "commands": commands, **groups,
        }  # fmt: skip
        self._session = GdbSession(self._process, "record_hits", config)
        self._session.attach()
        self._counted_ns = time.monotonic_ns()

    def count_losses(self, on: bool) -> None:
        """gdb sets and takes off all of them while the process stands still."""

    def poll(self, timeout_s: float) -> list[Hit]:
        if self._session is None:
            return []
        self._take(self._session.receive(timeout_s))
        return self._collected()

    def drain(self) -> list[Hit]:
        if self._session is not None:
            self._take(self._session.receive(0))
        return self._collected()

    def oldest_ns(self) -> int | None:
        return None

    def whole_stack(self, base: int, end: int) -> None:
        """gdb copies as much of every stack."""

    def lost(self) -> dict[int, int]:
        return self._lost

    def counted_ns(self, asked_ns: int) -> int:
        """What found no room is told by the next message that does."""
        return min(asked_ns, self._counted_ns)

    def needed(self) -> tuple[str, ...]:
        return tuple(CAPABILITIES)

    def close(self) -> None:
        if self._session is not None:
            self._take(self._session.close())

    def pauses_ms(self) -> dict[str, float]:
        return self._session.ending.paused_ms if self._session else {}

    def problems(self) -> list[str]:
        return self._session.ending.problems if self._session else []

    def _collected(self) -> list[Hit]:
        hits, self._hits = self._hits, []
        return hits

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if "lost" in message.facts:
                self._lost = {int(site): n for site, n in message.facts["lost"].items()}
            if message.facts["kind"] == "hit":
                self._counted_ns = max(self._counted_ns, message.facts["time_ns"])
                self._hits.append(hit_of(message))
