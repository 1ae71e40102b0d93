"""All QEMUs of a host: those that run, those that start, those that end."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtrace.host.unanswered import NoAnswer
from qtrace.inspection.request_proof import RequestFinding
from qtrace.knowledge import WITHOUT_MAIN_LOOP
from qtrace.machine.stat_file import STARTTIME, stat_fields
from qtrace.monitor.labels import unique_label
from qtrace.monitor.state import HostState
from qtrace.monitor.watched_vm import WatchedVm
from qtrace.process.process_list import guest_name, qemu_processes
from qtrace.qemu.aio.findings import Finding

UNNAMED = "unnamed"


@dataclass(frozen=True)
class News:
    """A finding that has come up."""

    vm: str
    pid: int
    finding: Finding | RequestFinding


class HostWatch:
    """Call ``refresh`` at a steady pace; each QEMU is looked at by a thread of its own meanwhile.

    Args:
        every_s: between two looks at one QEMU.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        # By pid and when it started: a pid may come again.
        self._vms: dict[tuple[int, int], WatchedVm] = {}
        self._others = 0

    def refresh(self) -> list[News]:
        """Take up what has started, leave what has ended; the findings that have come up."""
        here: dict[tuple[int, int], str] = {}
        self._others = 0
        for pid, program in qemu_processes():
            with suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
                started = int(stat_fields(stat)[STARTTIME])
                if program in WITHOUT_MAIN_LOOP:
                    self._others += 1
                else:
                    here[(pid, started)] = program
        for key in [key for key, vm in self._vms.items() if key not in here or vm.ended]:
            self._vms.pop(key).stop()
        for (pid, started), program in here.items():
            if (pid, started) not in self._vms:
                vm = self._unique(_name(pid))
                self._vms[(pid, started)] = WatchedVm(pid, vm, program, self._every_s)
        return [
            News(vm.state.vm, vm.pid, finding) for vm in self._vms.values() for finding in vm.news()
        ]

    @property
    def state(self) -> HostState:
        """What is known now."""
        shown = [vm for vm in self._vms.values() if not vm.refused and not vm.ended]
        return HostState(
            tuple(vm.state for vm in shown),
            self._others,
            dict(Counter(vm.refused for vm in self._vms.values() if vm.refused)),
            time.process_time(),
            time.time(),
        )

    @property
    def all_seen(self) -> bool:
        """Whether each one has been looked at, or cannot be."""
        return all(
            vm.ended or vm.refused or vm.state.looks or vm.state.unreadable_s
            for vm in self._vms.values()
        )

    def _unique(self, name: str) -> str:
        """Two guests may have the same name."""
        return unique_label(name, {vm.state.vm for vm in self._vms.values()})


def _name(pid: int) -> str:
    try:
        return guest_name(pid) or UNNAMED
    except (OSError, NoAnswer):
        return UNNAMED
