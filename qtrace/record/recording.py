"""One recording of one process: arm, take rows until something ends it, close in good order."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from qtrace.errors import NoSuchProcess, RecorderFailed
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.thread_roles import survey
from qtrace.process.hit import Hit
from qtrace.record.header import detach_row
from qtrace.record.looks_apart import LooksApart
from qtrace.record.plans import Plans
from qtrace.record.probes import Probes
from qtrace.record.qmp_rows import Commands
from qtrace.record.rotation import Rotation
from qtrace.record.rows import RowMaker
from qtrace.record.stall import Stalls
from qtrace.record.target_end import Watcher
from qtrace.record.watch_losses import Losses
from qtrace.trace.raw import RawWriter
from qtrace.trace.schema import NEVER, Event
from qtrace.trace.writer import CsvWriter

if TYPE_CHECKING:
    # They take numpy, which a recording of the watched ones alone does without.
    from qtrace.record.all_events.all_recorder import AllRecorder

# How long rows are made before anything else has its turn; the rings of `--all` fill meanwhile.
BUDGET_NS, BUDGET_BESIDE_ALL_NS = 100_000_000, 20_000_000


class Recording:
    """A context manager that is armed from the start and disarmed at the end.

    Attributes:
        path: the CSV that grows with every ``poll``; with `--all` the raw file; of several files
            what all are called.
        everything: the probes of `--all`, if there are.
        ended: the target is gone; no more rows come.
        header: the attach row.
        qemu: the target.
        pid: its.
        watched: the bottom halves' names.
        recorder: ``ebpf`` or ``gdb``.
        why: why it is gdb, where eBPF would have been taken.
        note: what is to be said of how the recorder was made ready; mostly empty.
    """

    def __init__(
        self,
        qemu: LiveQemu,
        plans: Plans,
        probes: Probes,
        writer: CsvWriter | RawWriter,
        stalls: Stalls | LooksApart,
        everything: AllRecorder | None = None,
        from_start: bool = False,
        rotation: Rotation | None = None,
    ) -> None:
        # The first moment of the recording, and the one after its last: then all probes are set.
        # What one of them noted before or later is no part of it.
        self._since_ns, self._until_ns = 0, NEVER
        self.everything = everything
        self._from_start = from_start
        self.qemu = qemu
        self._watcher = Watcher(qemu.pid)
        self._plan = plan = plans.watch
        self._probes = probes
        self._writer = writer
        self._rotation = rotation
        self._stalls = stalls
        bias = qemu.bias
        sites = {site.vaddr + bias: site for site in plan.sites}
        self._losses = Losses(probes, sites)
        self._commands = Commands(qemu.binary, qemu.memory)
        self._rows = RowMaker(sites, qemu, self._commands, probes.whole_stack)
        self._surveyed = self._looked = False
        self._stopped = False
        self.ended = False
        self.header = Event(0, "attach")
        self.path = writer.path if rotation is None else rotation.name
        self.pid = qemu.pid
        self.recorder = probes.name
        self.why = ""
        self.note = probes.note
        self.watched = tuple(half.name for half in plan.watched)
        if everything is not None:
            everything.begin(writer, qemu, [half.callback + bias for half in plan.watched])

    def begin(self, header: Event) -> None:
        """Every probe is set: write the first row, and what is pending already.

        Args:
            header: nothing in the recording is older.

        Raises:
            NoSuchProcess: the target has ended while they were being set.
            OutputFailed
        """
        if not self._from_start and self._watcher.ended():
            # Its pid may be another process's by now.
            raise NoSuchProcess(self.qemu.pid)
        self.header = header
        self._since_ns = header.time_ns
        self._losses.begin(header.time_ns)
        self._write([header if self._rotation is None else self._rotation.begin(header)])
        if self.everything is not None:
            self.everything.starts(header.time_ns)
            # A program that was started by us may be over soon, and its threads' names gone.
            self.everything.drain(header.time_ns)
            # Before anybody is told: a thread that waits now may be busy soon.
            self._survey()

    def poll(self, timeout_s: float) -> list[Event]:
        """The new rows, already on disk; empty when none came in time.

        Raises OutputFailed when the trace cannot be written any more.
        """
        if self._stopped or self.ended:
            return []
        every = self.everything
        mark = time.monotonic_ns()
        if every is not None:
            timeout_s = every.patience(timeout_s)
        self._survey()
        surveyed = self._first_look()
        # At once: should the recorder turn out to have failed meanwhile, they are kept.
        self._write(surveyed)
        asked_ns = time.monotonic_ns()
        taken = self._take(self._probes.poll(0 if surveyed else timeout_s))
        taken += self._catch_up(BUDGET_NS if every is None else BUDGET_BESIDE_ALL_NS)
        self._stalls.saw(taken)
        # The answer of one that seems to take long may be among the hits that wait.
        seen_ns = min(asked_ns, self._probes.oldest_ns() or asked_ns)
        rows = [*taken, *self._commands.long(seen_ns), *self._look(self._stalls.check)]
        if self._watcher.ended():
            self.ended = True
            rows += [*self._take(self._probes.drain()), *self._commands.show()]
            status = self._exit_status()
            rows.append(Event(time.monotonic_ns(), "exit", detail=status))
        if self.ended or self._losses.due:
            rows += self._losses.rows()
        self._write(rows)
        if every is not None:
            # Of hits that still wait the rows are yet to come.
            rows += every.drain(min(mark, self._probes.oldest_ns() or mark))
        if self._rotation is not None:
            self._rotation.turn(self._writer, self._settled_ns(mark))
        return [*surveyed, *rows]

    @property
    def hits(self) -> int:
        """Schedules and runs of watched bottom halves, and plain calls, so far."""
        return sum(count for site, count in self._rows.hits.items() if not site.is_step)

    @property
    def pending(self) -> int:
        """Watched bottom halves that were scheduled and have not run yet."""
        return self._stalls.pending

    def warnings(self) -> list[str]:
        """What cannot run, in a sentence each: once when it is seen, and again after ``stop``."""
        return self._stalls.warnings()

    def drop_all(self, reason: str) -> None:
        """Take the probes of `--all` off; the watched bottom halves keep theirs."""
        if self.everything is not None:
            self.everything.drop(reason)

    def stop(self, reason: str) -> None:
        """Disarm, write what is left and the closing row. Calling it again does nothing."""
        if self._stopped:
            return
        self._stopped = True
        every = self.everything
        try:
            taken_out = []
            if self._until_ns == NEVER:
                sites = every.plan.sites if every is not None and every.armed else ()
                taken_out = self._losses.taken_out(self.qemu, self.header.time_ns, sites)
            self._disarm()
            self._write([*self._take(self._probes.drain()), *self._commands.show()])
            self._write([*self._losses.rows(), *taken_out])
            self._write([] if self.ended else self._look(self._stalls.end))
            if every is not None:
                every.finish()
            row = detach_row(
                reason, self._until_ns, self._plan, self._rows.hits,
                self._losses.count, self._commands, every, self._probes.pauses_ms(),
            )  # fmt: skip
            self._write([row])
        finally:
            if self.everything is not None:
                self.everything.close()
            if isinstance(self._stalls, LooksApart):
                self._stalls.close()
            self._writer.close()
            self._watcher.close()

    def _exit_status(self) -> dict[str, int]:
        if isinstance(self._stalls, LooksApart):
            return self._stalls.status()
        return self._watcher.status()

    def pauses_ms(self) -> dict[str, float]:
        """How long the guest stood still for the recorder, by phase; empty with eBPF."""
        return self._probes.pauses_ms()

    def problems(self) -> list[str]:
        """What was not as before when the recording had ended, or is not there, in words."""
        every = self.everything
        stacks = every.stacks_without_room if every is not None else ""
        return [*self._probes.problems(), *self._losses.problems, *([stacks] if stacks else [])]

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._disarm()
        if isinstance(error, RecorderFailed) and not self._stopped:
            self._write([self._losses.anything()])
            self.stop("the recorder failed")
        elif error is None or not isinstance(error, OSError):
            self.stop("target exited" if self.ended else "interrupted")

    def _disarm(self) -> None:
        """End at this moment, and take the probes off, one after the other."""
        if self._until_ns == NEVER:
            self._until_ns = time.monotonic_ns()
            self._probes.count_losses(False)
        if self.everything is not None:
            self.everything.disarm(self._until_ns)
        self._probes.close()

    def _survey(self) -> None:
        """Learn what stacks need and the threads' roles; after arming, as it reads files."""
        if self._surveyed:
            return
        self._surveyed = True
        self._commands.begin()
        if not self._from_start:
            with suppress(NoSuchProcess):
                survey(self.qemu)

    def _first_look(self) -> list[Event]:
        """What is pending already, and who does not go on; nobody has to wait for it."""
        if self._looked or self._from_start:
            # Of a program that we started: nothing was pending, its threads are yet to come, and
            # it may be over soon.
            return []
        self._looked = True
        return self._look(lambda: self._stalls.begin(lambda: self._take(self._probes.drain())))

    def _look(self, take: Callable[[], list[Event]]) -> list[Event]:
        """Rows of a look; none when the process ends under it, which the watcher will tell."""
        try:
            return take()
        except NoSuchProcess:
            return []

    def _catch_up(self, budget_ns: int) -> list[Event]:
        """The rows of what waited when it was called, or of as many hits as there is time for."""
        began_ns, rows = time.monotonic_ns(), []
        while (self._probes.oldest_ns() or began_ns) < began_ns > time.monotonic_ns() - budget_ns:
            rows += self._take(self._probes.poll(0))
        return rows

    def _take(self, hits: list[Hit]) -> list[Event]:
        # CPUs reserve and take the time in two steps: neighbours may be swapped.
        rows = []
        for hit in sorted(hits, key=lambda hit: hit.time_ns):
            if self._since_ns <= hit.time_ns < self._until_ns:
                rows += self._rows.rows(hit)
        return rows

    def _settled_ns(self, mark: int) -> int:
        """A time before which nothing is still to be written.

        Args:
            mark: what was noted before has been asked for since.
        """
        waits = [self._probes.oldest_ns(), self._commands.oldest_ns()]
        if self.everything is not None:
            waits.append(self.everything.mark)
        return min([mark, *(one for one in waits if one is not None)])

    def _write(self, rows: list[Event]) -> None:
        self._writer.write(rows)
        self._writer.flush()
