"""The probes of one QEMU, and what they have shown so far.

Its own thread arms them and makes rows of their hits: whoever waits for the kernel's answer about
one QEMU keeps no other from being armed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from operator import is_
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from qtrace.errors import NoSuchProcess, QtraceError
from qtrace.inspection.qemu import LiveQemu
from qtrace.knowledge import SNAPSHOT_JOBS
from qtrace.monitor.flight import Flight
from qtrace.monitor.happenings import Happened, ran
from qtrace.monitor.host_probes import Armed, HostProbes
from qtrace.monitor.labels import OTHER
from qtrace.monitor.state import StepCounts, VmState
from qtrace.process.hit import Hit
from qtrace.process.process import Process, unless_it_ends
from qtrace.record.qmp_rows import Commands
from qtrace.record.rows import RowMaker
from qtrace.sites.scan import Scan

# A program that has just started has its main context after so long, or it is not waited for.
CONTEXTS_WAIT_S = 5.0
# What could not be armed is tried again.
AGAIN_S = 10.0
# The job's status after which there is none (qapi/job.json), and more than there are statuses.
GONE, MOST_STATUSES = "null", 32


class VmProbes:
    """Of one QEMU.

    Args:
        key: which of those that have had its pid.
        exec_ns: when it started; 0 where it was there before.
        timed: whether its bottom halves are.

    Attributes:
        exec_ns: it may be told later.
        untimed: why they are not although they are to be, empty where they are.
        status: how the process has ended; None while it is there.
        unarmed: why it is not, empty where it is or was not tried yet.
        wake: is called when there is something to ``take``.
    """

    def __init__(
        self, host: HostProbes, key: str, exec_ns: int = 0, *, timed: bool = False
    ) -> None:
        self._host = host
        self._timed, self._timed_places = timed, 0
        self.untimed = ""
        self._key = key
        self.exec_ns = exec_ns
        self._pid = 0
        self._armed: Armed | None = None
        self._tried = -AGAIN_S
        self._hits: SimpleQueue[Hit] = SimpleQueue()
        self._counts: dict[str, Any] = {}
        self._rows: RowMaker | None = None
        self._commands: Commands | None = None
        self._qemu: LiveQemu | None = None
        # Never changed, but replaced.
        self._ran: dict[str, dict[str, int]] = {}
        self._shown: tuple[tuple[object, ...], VmState] | None = None
        self._news: list[Happened] = []
        self._asked: SimpleQueue[tuple[Path, Callable[[str], None]]] = SimpleQueue()
        self._last: list[Hit] = []
        self.status: dict[str, int] | None = None
        self.unarmed = ""
        self.wake: Callable[[], Any] = lambda: None

    # In its own thread.

    def arm(self, process: Process) -> None:
        """Arm it, unless it is. Of what stands in the way ``unarmed`` tells.

        Raises NoSuchProcess.
        """
        if self._is_armed or (self.unarmed and time.monotonic() - self._tried < AGAIN_S):
            return
        self._tried = time.monotonic()
        self._pid = process.pid
        self._timed_places = 0
        try:
            with unless_it_ends(process.pid):
                self._armed = self._host.arm(process, self._key, self)
            self.unarmed = ""
            self._time(process)
        except NoSuchProcess:
            raise
        except QtraceError as error:
            self.unarmed = error.message
        if self._qemu is not None:
            self._tell_gone()
            self._make_rows(self._qemu)

    def _time(self, process: Process) -> None:
        if not self._timed:
            return
        try:
            with unless_it_ends(process.pid):
                self._timed_places = self._host.time_bottom_halves(process, self._key)
            self.untimed = ""
        except NoSuchProcess:
            raise
        except QtraceError as error:
            self.untimed = error.message

    @property
    def scan(self) -> Scan | None:
        """Of its binary; None where that was not read."""
        return self._armed.plans.scan if self._armed else None

    def begin(self, qemu: LiveQemu) -> None:
        """Learn what its hits need; of one that has just started, once it has event loops."""
        code = qemu.binary.elf.code[0].vaddr + qemu.bias
        with suppress(QtraceError):
            qemu.contexts.wait(CONTEXTS_WAIT_S, lambda: not qemu.memory.read(code, 1))
        # Its libraries may have come meanwhile.
        qemu.space.refresh()
        self._qemu = qemu
        commands = Commands(qemu.binary, qemu.memory)
        commands.begin()
        self._commands = commands
        self._tell_gone()
        self._make_rows(qemu)

    def take(self) -> None:
        """Make of the hits up to now what they show."""
        while self._rows is not None:
            try:
                hit = self._hits.get_nowait()
            except Empty:
                return
            if self._armed is None or hit.address not in self._armed.sites:
                continue
            for row in self._rows.rows(hit):
                if row.event == "run":
                    name = row.name if row.name in SNAPSHOT_JOBS else OTHER
                    roles = self._ran.get(name, {})
                    role = row.role or OTHER
                    self._ran = self._ran | {name: roles | {role: roles.get(role, 0) + 1}}
                    if happened := ran(row):
                        self._news.append(happened)

    # In any thread.

    def write_last(self, path: Path, failed: Callable[[str], None]) -> bool:
        """Begin to write its last events into a file, also when it has ended; whether it can be.

        Args:
            failed: is told why they could not be written, in another thread.
        """
        if self._armed is None or self._qemu is None or not self._host.keeps_last:
            return False
        self._asked.put((path, failed))
        self._host.ask_last(self._pid, self._key, self)
        return True

    def last_hit(self, hit: Hit) -> None:
        self._last.append(hit)

    def last_end(self, since_ns: int) -> None:
        hits, self._last = self._last, []
        path, failed = self._asked.get()
        armed, qemu = self._armed, self._qemu
        if armed is not None and qemu is not None:
            lost = self._host.lost() - armed.lost
            last = Flight(qemu, armed, hits, since_ns, lost, self._commands, self.status)
            # To unwind takes its time, and others are waited for here.
            Thread(target=last.write, args=(path, failed), daemon=True).start()

    def hit(self, hit: Hit) -> None:
        self._hits.put(hit)
        self.wake()

    def steps(self, counts: dict[str, Any]) -> None:
        self._counts = counts

    def news(self) -> list[Happened]:
        news, self._news = self._news, []
        return news

    def add_to(self, state: VmState) -> VmState:
        """The state with what the probes have shown."""
        armed = self._armed if self._is_armed else None
        sums = self._host.sums
        # Asked once a second, and mostly nothing has happened meanwhile.
        made_of = (state, armed, self._counts, self._commands, self._ran)
        if self._shown and not self._timed and all(map(is_, self._shown[0], made_of)):
            return self._shown[1]
        since_s = (armed.at_ns - self.exec_ns) / 1e9 if armed and self.exec_ns else 0.0
        shown = replace(
            state,
            probes=len(armed.sites) + self._timed_places if armed else 0,
            armed_s=since_s,
            steps=self._steps(),
            ran=self._ran,
            times=sums.times(self._pid) if self._timed and sums is not None else {},
        )
        self._shown = (made_of, shown)
        return shown

    def close(self) -> None:
        self._host.forget(self._pid, self._key)

    @property
    def _is_armed(self) -> bool:
        return self._armed is not None and self._armed.generation == self._host.generation

    def _steps(self) -> StepCounts:
        if not self._counts:
            return StepCounts()
        counts, commands = self._counts, self._commands

        def named(numbers: dict[str, int]) -> dict[str, int]:
            return {
                commands.status(int(number)) if commands else number: count
                for number, count in numbers.items()
            }

        return StepCounts(
            **counts | {"jobs": named(counts["jobs"]), "changes": named(counts["changes"])}
        )

    def _tell_gone(self) -> None:
        commands = self._commands
        if commands is not None and self._is_armed:
            for number in range(MOST_STATUSES):
                if commands.status(number) == GONE:
                    self._host.tell_gone(self._pid, self._key, number)

    def _make_rows(self, qemu: LiveQemu) -> None:
        if self._armed is not None and self._commands is not None:
            self._rows = RowMaker(self._armed.sites, qemu, self._commands)
