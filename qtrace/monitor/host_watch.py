"""All QEMUs of a host: those that run, those that start, those that end."""

from __future__ import annotations

import select
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from qtrace.errors import RecorderUnavailable
from qtrace.host.unanswered import NoAnswer
from qtrace.inspection.request_proof import RequestFinding
from qtrace.knowledge import PROGRAMS, WITHOUT_MAIN_LOOP
from qtrace.machine.stat_file import STARTTIME, stat_fields, state_letter
from qtrace.monitor.exec_notices import ExecNotices, Work
from qtrace.monitor.happenings import Happened, ended, how_it_ended
from qtrace.monitor.host_probes import HostProbes
from qtrace.monitor.labels import unique_label
from qtrace.monitor.state import HostState, ProbeState
from qtrace.monitor.vm_probes import VmProbes
from qtrace.monitor.vm_sums import VmSums
from qtrace.monitor.watched_vm import UNKNOWN, WatchedVm
from qtrace.process.process_list import QemuProcesses, guest_name, name_of_guest
from qtrace.qemu.aio.findings import Finding

UNNAMED = "unnamed"
Key = tuple[int, int]
"""Pid, and when it started, in clock ticks after the host."""


@dataclass(frozen=True)
class News:
    """A finding that has come up."""

    vm: str
    pid: int
    finding: Finding | RequestFinding | Happened
    probes: VmProbes | None = None


class HostWatch:
    """Call ``refresh`` at a steady pace; each QEMU is looked at by a thread of its own meanwhile.

    Args:
        every_s: between two looks at one QEMU.
        probing: whether they are to be probed, too. Where they cannot be, ``state`` tells why.
        programs: watch those without a main loop, too.
        names: watch the guests of these names (globs) alone; empty: all.
        last_s: for how long the events of each QEMU are kept; 0: not at all.
        sums: of which QEMUs bottom halves are timed; None: of none.
    """

    def __init__(
        self,
        every_s: float,
        *,
        probing: bool = False,
        programs: bool = False,
        names: tuple[str, ...] = (),
        last_s: float = 0.0,
        sums: VmSums | None = None,
    ) -> None:
        self._every_s = every_s
        self._uncounted = frozenset() if programs else WITHOUT_MAIN_LOOP
        self._processes = QemuProcesses()
        self._names = names
        self._unwanted: set[Key] = set()
        # By pid and when it started: a pid may come again.
        self._vms: dict[Key, WatchedVm] = {}
        self._lock = threading.Lock()
        self._others = self._programs = 0
        self._ended: Counter[str] = Counter()
        self._found: dict[str, Counter[str]] = {}
        self._probing = probing
        self.no_probes = ""
        self.probes: HostProbes | None = None
        self._notices: ExecNotices | None = None
        if probing:
            try:
                self.probes = HostProbes(last_s, sums)
                self._notices = ExecNotices(self._started)
            except RecorderUnavailable as error:
                self.no_probes = f"{error.message}; {error.remedy}"
                self.close()
                self.probes = None

    def refresh(self) -> list[News]:
        """Take up what has started, leave what has ended; the findings that have come up."""
        here: dict[Key, str] = {}
        self._others = 0
        if self.probes is not None:
            self.probes.revive()
            if self.probes.sums is not None:
                self.probes.sums.refresh()
        with self._lock:
            vms = dict(self._vms)
        gone = {key for key, vm in vms.items() if vm.ended}
        # Whose end the kernel tells needs not be asked for.
        sure = {key[0]: key for key, vm in vms.items() if vm.end is not None and key not in gone}
        for pid, program in self._processes.present():
            with suppress(OSError):
                if program in self._uncounted:
                    self._others += 1
                else:
                    here[sure.get(pid) or _key(pid)] = program
        news = []
        for key, vm in vms.items():
            news += [News(vm.name, vm.pid, finding, vm.probes) for finding in vm.news()]
            if key not in here or key in gone:
                news += self._leave(key, vm)
        with self._lock:
            new = [key for key in here if key not in self._vms and key not in self._unwanted]
        for key in new:
            taken = self._take_up(key, here[key], _name(key[0]))
            if taken is not None:
                taken.begin()
        with self._lock:
            self._unwanted &= here.keys()
        names = {vm.name for vm in vms.values()}
        self._found = {name: kinds for name, kinds in self._found.items() if name in names}
        for one in news:
            if one.vm in names:
                self._found.setdefault(one.vm, Counter())[one.finding.kind] += 1
        return news

    def wait(self, timeout_s: float) -> None:
        """Until one of them ends, at most so long."""
        poller = select.poll()
        with self._lock:
            for vm in self._vms.values():
                if vm.end is not None:
                    poller.register(vm.end.fd, select.POLLIN)
        poller.poll(timeout_s * 1000)

    def close(self) -> None:
        """Disarm all."""
        if self._notices is not None:
            self._notices.close()
        if self.probes is not None:
            self.probes.close()

    @property
    def state(self) -> HostState:
        """What is known now."""
        with self._lock:
            vms = list(self._vms.values())
        states = [vm.state for vm in vms if not vm.refused and not vm.ended]
        return HostState(
            tuple(
                replace(one, found=dict(found)) if (found := self._found.get(one.vm)) else one
                for one in states
            ),
            self._others,
            dict(Counter(vm.refused for vm in vms if vm.refused)),
            time.process_time() + (self.probes.cpu_s if self.probes else 0.0),
            time.monotonic(),
            dict(self._ended),
            self._probe_state(vms) if self._probing else None,
        )

    def _probe_state(self, vms: list[WatchedVm]) -> ProbeState:
        if self.probes is None:
            return ProbeState(self.no_probes)
        missing = "" if self.probes.alive else "the process that reads them has ended"
        unarmed = Counter(vm.probes.unarmed for vm in vms if vm.probes and vm.probes.unarmed)
        untimed = Counter(vm.probes.untimed for vm in vms if vm.probes and vm.probes.untimed)
        sums = self.probes.sums
        return ProbeState(
            missing, dict(unarmed), self.probes.lost(), self._programs,
            dict(untimed), sums.lost() if sums is not None else None,
        )  # fmt: skip

    def _started(self, pid: int, name: str, time_ns: int) -> Work | None:
        """A program has started: at once, not at the next ``refresh``."""
        if not PROGRAMS.match(name):
            return None
        if name in WITHOUT_MAIN_LOOP:
            self._programs += 1
        return None if name in self._uncounted else partial(self._begin, pid, name, time_ns)

    def _begin(self, pid: int, program: str, exec_ns: int) -> None:
        """Watch one that has just started, by this thread."""
        with suppress(OSError):
            # Nobody else waits for its answers here, so that they need no limit.
            known = name_of_guest(Path(f"/proc/{pid}/cmdline").read_bytes())
            vm = self._take_up(_key(pid), program, known, exec_ns)
            if vm is not None:
                vm.work()

    def _take_up(
        self, key: Key, program: str, known: str | None, exec_ns: int = 0
    ) -> WatchedVm | None:
        """One that is to be watched, and was not yet; by whom is its caller's to say.

        Args:
            known: its name; None where that was not told.
        """
        guest = known or UNNAMED
        with self._lock:
            if (there := self._vms.get(key)) is not None:
                # Found in the moment of its exec.
                if there.probes is not None and exec_ns:
                    there.probes.exec_ns = exec_ns
                return None
            # One that does not even tell its name may be the one that hangs.
            if known is not None and not self._is_wanted(guest):
                self._unwanted.add(key)
                return None
            pid, started = key
            probes = None
            if self.probes is not None:
                timed = self.probes.sums is not None and self.probes.sums.wants(guest)
                probes = VmProbes(self.probes, f"{pid}:{started}", exec_ns, timed=timed)
            vm = WatchedVm(pid, self._unique(guest), program, self._every_s, probes)
            self._vms[key] = vm
            return vm

    def _is_wanted(self, guest: str) -> bool:
        return not self._names or any(fnmatchcase(guest, glob) for glob in self._names)

    def _leave(self, key: Key, vm: WatchedVm) -> list[News]:
        with self._lock:
            self._vms.pop(key, None)
        vm.stop()
        name = vm.name
        status = vm.end.status() if vm.end is not None else {}
        if vm.probes is not None:
            vm.probes.status = status
        self._ended[how_it_ended(status) or UNKNOWN] += 1
        happened = ended(status)
        return [News(name, vm.pid, happened, vm.probes)] if happened else []

    def all_seen(self, over_s: float) -> bool:
        """Whether looks over so long have been taken at each one, or cannot be."""
        with self._lock:
            vms = list(self._vms.values())
        return all(vm.is_seen(over_s) for vm in vms)

    def _unique(self, name: str) -> str:
        """Two guests may have the same name."""
        return unique_label(name, {vm.name for vm in self._vms.values()})


def _key(pid: int) -> Key:
    """Raises OSError; also of one that has ended and that nobody has waited for yet."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    if state_letter(stat) in ("Z", "X", ""):
        raise ProcessLookupError(pid)
    return pid, int(stat_fields(stat)[STARTTIME])


def _name(pid: int) -> str | None:
    """The guest's name, empty when it has none; None where that is not told."""
    try:
        return guest_name(pid)
    except (OSError, NoAnswer):
        return None
