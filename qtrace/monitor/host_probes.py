"""The rare probes of all QEMUs of a host: one set of programs and ring buffers, links for each.

Nothing sits on a path that is often taken: QMP commands, changes of jobs, runs of the bottom halves
that are watched by default (docs/monitor.md has the price).
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qtrace.binary.module import Module, ParsedFile
from qtrace.errors import RecorderUnavailable
from qtrace.host.capabilities import check_ebpf
from qtrace.machine.stat_file import STIME, UTIME, stat_fields
from qtrace.monitor.messages import HIT, LAST_HIT, LAST_STEP
from qtrace.monitor.recorder_process import RecorderProcess
from qtrace.monitor.vm_sums import VmSums
from qtrace.process.hit import Hit
from qtrace.process.process import Process
from qtrace.record.ebpf.bpf_program import load_watch
from qtrace.record.ebpf.ebpf_recorder import HitReader, StepReader, function_of
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.record.plans import Plans, make_plans
from qtrace.sites.running_code import check_in_place
from qtrace.sites.watch_plan import Site

# 4 MiB, 110 hits with as much stack as is ever copied; 1 MiB, 7,000 steps.
RING_PAGES, STEP_RING_PAGES = 1024, 256
# What is told of: who schedules a bottom half, and when it returns, nobody counts.
KINDS = ("run", "qmp", "job")
PAGE = 4096
# Builds whose sites are kept although none of them runs.
KEPT_BUILDS = 4
# A recorder that has ended is begun again so often at most.
AGAIN_S = 5.0


class Told(Protocol):
    """Who is told what the probes of one QEMU show, in another thread."""

    def hit(self, hit: Hit) -> None:
        """A run of a watched bottom half."""

    def steps(self, counts: dict[str, Any]) -> None:
        """What is counted of QMP commands and jobs so far (``VmSteps.report``)."""

    def last_hit(self, hit: Hit) -> None:
        """One of the last events, which were asked for."""

    def last_end(self, since_ns: int) -> None:
        """These were all from then on; 0: none are kept."""


@dataclass(frozen=True)
class Armed:
    """The probes of one QEMU.

    Attributes:
        sites: by run-time address.
        at_ns: CLOCK_MONOTONIC, when all were set.
        lost: hits of all QEMUs that nobody had seen until then.
    """

    plans: Plans
    sites: dict[int, Site]
    at_ns: int
    generation: int
    lost: int


class HostProbes:
    """Loaded from the start; each QEMU is armed by itself.

    Args:
        last_s: for how long the events of each QEMU are kept; 0: not at all.
        sums: of which QEMUs bottom halves are timed; None: of none.

    Attributes:
        generation: which recorder it is, from 1 on: what an earlier one had armed is armed no more.
        unsent: runs that came faster than they are passed on.
    """

    def __init__(self, last_s: float = 0.0, sums: VmSums | None = None) -> None:
        """Raises RecorderUnavailable."""
        if missing := check_ebpf():
            raise RecorderUnavailable(f"{missing.name}: {missing.detail}", missing.remedy)
        self.sums = sums
        self._last_ns = int(last_s * 1e9)
        self._program = load_watch(RING_PAGES, STEP_RING_PAGES)
        layouts = self._program.layouts
        self._readers: dict[bytes, Callable[[bytes], Hit]] = {
            HIT: HitReader(layouts["events"]),
            LAST_HIT: HitReader(layouts["events"]),
            LAST_STEP: StepReader(layouts["steps"]),
        }
        self._pids = {
            letter: layouts["steps" if letter == LAST_STEP else "events"]["tgid"]
            for letter in self._readers
        }
        self._told: dict[int, tuple[str, Told]] = {}
        self._asked: dict[tuple[int, str], Told] = {}
        self._plans: OrderedDict[ParsedFile, Plans] = OrderedDict()
        self._lock = threading.Lock()
        self.unsent = 0
        self.generation = 0
        self._begin_recorder()
        self._program.count_losses(True)

    def _begin_recorder(self) -> None:
        self._begun = time.monotonic()
        self.generation += 1
        pages = {"events": RING_PAGES, "steps": STEP_RING_PAGES}
        rings = {name: (self._program.maps[name], count * PAGE) for name, count in pages.items()}
        layouts = {name: self._program.layouts[name] for name in rings}
        self._recorder = RecorderProcess(
            rings, layouts, self._last_ns, self._take, self._take_record
        )

    @property
    def alive(self) -> bool:
        """Whether the probes are read."""
        return self._recorder.alive

    @property
    def pid(self) -> int:
        """The recorder's."""
        return self._recorder.pid

    @property
    def cpu_s(self) -> float:
        """Processor time that the recorder has used; 0 while there is none."""
        with suppress(OSError):
            fields = stat_fields(Path(f"/proc/{self.pid}/stat").read_text(errors="replace"))
            return (int(fields[UTIME]) + int(fields[STIME])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def revive(self) -> None:
        """Begin another recorder where it has ended: who was armed is to be armed again."""
        if not self.alive and time.monotonic() - self._begun >= AGAIN_S:
            self._recorder.close()
            self._begin_recorder()

    def lost(self) -> int:
        """Hits that found no room, of all QEMUs."""
        return sum(count for _ip, count in self._program.counts("lost")) + self.unsent

    def arm(self, process: Process, key: str, told: Told) -> Armed:
        """Set all probes of one QEMU.

        Args:
            key: which of those that have had its pid.

        Raises:
            QtraceError: why not; none is set then.
        """
        generation = self.generation
        plans = self._plan(process.binary)
        plans.check(process)
        bias = process.binary.bias
        sites = {
            site.vaddr + bias: site
            for site in plans.watch.sites
            if self._last_ns or site.kind in KINDS
        }
        steps = {str(at): site.name for at, site in sites.items() if site.kind in ("qmp", "job")}
        with self._lock:
            self._told[process.pid] = (key, told)
        about = {"pid": process.pid, "key": key}
        runs = [at for at, site in sites.items() if site.kind == "run"]
        self._recorder.send({"what": "vm", **about, "steps": steps, "runs": runs})
        uprobes = Uprobes(process.pid, process.exe, process.binary.elf.offset_of)
        try:
            uprobes.attach_all(
                (fd, {s.vaddr: s.label for s in sites.values() if function_of(s) == name})
                for name, fd in self._program.functions.items()
            )
            labels = {site.vaddr: site.label for site in sites.values()}
            check_in_place(process.binary, process.memory, labels)
        except BaseException:
            uprobes.close()
            self.forget(process.pid, key)
            raise
        at_ns = time.monotonic_ns()
        self._keep(about, uprobes.hand_over())
        return Armed(plans, sites, at_ns, generation, self.lost())

    def time_bottom_halves(self, process: Process, key: str) -> int:
        """Set those of ``sums``, too, of one that is armed; how many. Raises QtraceError."""
        if self.sums is None:
            return 0
        links, places = self.sums.arm(process)
        self._keep({"pid": process.pid, "key": key}, links)
        return places

    def _keep(self, about: dict[str, Any], links: list[int]) -> None:
        """Give them to the recorder."""
        self._recorder.send({"what": "links", **about}, links)
        for fd in links:
            os.close(fd)

    def tell_gone(self, pid: int, key: str, status: int) -> None:
        """Which status a job has when it is gone."""
        self._recorder.send({"what": "gone", "pid": pid, "key": key, "status": status})

    def forget(self, pid: int, key: str) -> None:
        """It has ended, or is not to be watched any more."""
        with self._lock:
            is_known = self._told.get(pid, ("",))[0] == key
            if is_known:
                del self._told[pid]
        self._recorder.send({"what": "forget", "pid": pid, "key": key})
        if is_known and self.sums is not None:
            self.sums.forget(pid)

    def close(self) -> None:
        """Disarm all."""
        self._recorder.close()
        self._program.close()
        if self.sums is not None:
            self.sums.close()

    def _plan(self, module: Module) -> Plans:
        """The sites of a build, found once."""
        with self._lock:
            known = self._plans.get(module.parsed)
        made = known or make_plans(module, (), everything=False, optional=True)
        module.static_names = made.scan.static_names
        with self._lock:
            self._plans[module.parsed] = made
            self._plans.move_to_end(module.parsed)
            while len(self._plans) > KEPT_BUILDS:
                self._plans.popitem(last=False)
        return made

    def _take(self, message: dict[str, Any]) -> None:
        what = message["what"]
        if what == "unsent":
            self.unsent += message["count"]
        elif what == "steps":
            with self._lock:
                key, told = self._told.get(message["pid"], ("", None))
            if told is not None and key == message["key"]:
                told.steps(message["counts"])
        elif what == "last":
            with self._lock:
                asked = self._asked.pop((message["pid"], message["key"]), None)
            if asked is not None:
                asked.last_end(message["since_ns"])

    @property
    def keeps_last(self) -> bool:
        """Whether the last events are kept."""
        return bool(self._last_ns) and self.alive

    def ask_last(self, pid: int, key: str, told: Told) -> None:
        """Have its last events told: also of one that has ended a moment ago."""
        with self._lock:
            self._asked[pid, key] = told
        self._recorder.send({"what": "last", "pid": pid, "key": key})

    def _take_record(self, letter: bytes, record: bytes) -> None:
        at, size = self._pids[letter]
        pid = int.from_bytes(record[at : at + size], "little")
        hit = self._readers[letter](record)
        with self._lock:
            _key, told = self._told.get(pid, ("", None))
            # They are told of one QEMU after the other, in the order of the questions.
            asked = next(iter(self._asked.values()), None)
        if letter != HIT and asked is not None:
            asked.last_hit(hit)
        elif letter == HIT and told is not None:
            told.hit(hit)
