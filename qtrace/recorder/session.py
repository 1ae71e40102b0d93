"""One recording of one process: arm, take rows until something ends it, close in good order."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from qtrace.errors import NoSuchProcess, RecorderFailed
from qtrace.recorder.all_recorder import PERIOD_S, AllRecorder
from qtrace.recorder.commands import Commands
from qtrace.recorder.ending import Watcher
from qtrace.recorder.header import detach_row
from qtrace.recorder.losses import Losses
from qtrace.recorder.meaning import Meanings
from qtrace.recorder.plans import Plans
from qtrace.recorder.probes import Probes
from qtrace.recorder.rows import RowMaker
from qtrace.recorder.stall import Stalls
from qtrace.target.contexts import ContextNames
from qtrace.target.hit import Hit
from qtrace.target.jit import read_jit_code
from qtrace.target.process import Process
from qtrace.target.stack import Unwinder
from qtrace.target.threads import ThreadRoles
from qtrace.trace.raw import RawWriter
from qtrace.trace.schema import Event
from qtrace.trace.writer import CsvWriter


class Recording:
    """A context manager that is armed from the start and disarmed at the end.

    Attributes:
        path: the CSV that grows with every ``poll``; with `--all` the raw file.
        everything: the probes of `--all`, if there are.
        ended: the target is gone; no more rows come.
        header: the attach row.
        watched: the bottom halves' names.
        recorder: ``ebpf`` or ``gdb``.
        why: why it is gdb, where eBPF would have been taken.
    """

    def __init__(
        self,
        process: Process,
        plans: Plans,
        probes: Probes,
        writer: CsvWriter | RawWriter,
        roles: ThreadRoles,
        stalls: Stalls,
        everything: AllRecorder | None = None,
        contexts: ContextNames | None = None,
        from_start: bool = False,
    ) -> None:
        self.everything = everything
        self._from_start = from_start
        self._process = process
        self._watcher = Watcher(process.pid)
        self._plan = plan = plans.watch
        self._probes = probes
        self._writer = writer
        self._roles = roles
        self._stalls = stalls
        self._unwinder = Unwinder(process.space)
        self._unwinder.learn_jit(lambda: read_jit_code(process.memory, process.binary))
        bias = process.binary.bias
        sites = {site.vaddr + bias: site for site in plan.sites}
        self._losses = Losses(probes, sites)
        self._disarmed = False
        contexts = contexts or ContextNames(plans.scan, process.binary, process.memory)
        self._commands = Commands(process.binary, process.memory)
        self._rows = RowMaker(sites, self._unwinder, roles, contexts, self._commands)
        self._surveyed = False
        self._stopped = False
        self.ended = False
        self.header = Event(0, "attach")
        self.path = writer.path
        self.recorder = probes.name
        self.why = ""
        self.watched = tuple(half.name for half in plan.watched)
        if everything is not None and isinstance(writer, RawWriter):
            callbacks = [half.callback + bias for half in plan.watched]
            meanings = Meanings(process, self._unwinder, roles, contexts)
            everything.begin(writer, meanings, self._unwinder, bias, callbacks)

    def begin(self, header: Event) -> None:
        """Every probe is set: write the first row, and what is pending already.

        Raises:
            NoSuchProcess: the target has ended while they were being set.
            OutputFailed
        """
        if not self._from_start and self._watcher.ended():
            # Its pid may be another process's by now.
            raise NoSuchProcess(self._process.pid)
        self.header = header
        self._writer.write([header])
        self._writer.flush()
        if self.everything is not None:
            # A program that was started by us may be over soon, and its threads' names gone.
            self.everything.drain(header.time_ns)
            # Before anybody is told: a thread that waits now may be busy soon.
            self._write(self._survey())

    def poll(self, timeout_s: float) -> list[Event]:
        """The new rows, already on disk; empty when none came in time.

        Raises OutputFailed when the trace cannot be written any more.
        """
        if self._stopped or self.ended:
            return []
        every = self.everything
        mark = time.monotonic_ns()
        if every is not None:
            timeout_s = 0 if every.busy else min(timeout_s, PERIOD_S)
        surveyed = self._survey()
        # At once: should the recorder turn out to have failed meanwhile, they are kept.
        self._write(surveyed)
        asked_ns = time.monotonic_ns()
        taken = self._take(self._probes.poll(0 if surveyed else timeout_s))
        self._stalls.saw(taken)
        rows = [*taken, *self._commands.long(asked_ns), *self._look(self._stalls.check)]
        if self._watcher.ended():
            self.ended = True
            rows += [*self._take(self._probes.drain()), *self._commands.show()]
            status = self._watcher.status()
            rows.append(Event(time.monotonic_ns(), "exit", detail=status))
        if self.ended or self._losses.due:
            rows += self._losses.rows()
        self._write(rows)
        if every is not None:
            rows += every.drain(mark)
        return [*surveyed, *rows]

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
        until_ns = time.monotonic_ns()
        try:
            taken_out = []
            if not self._disarmed:
                taken_out = self._losses.taken_out(self._process, self.header.time_ns)
            self._disarm()
            every = self.everything
            if every is not None:
                every.disarm()
            self._write([*self._take(self._probes.drain()), *self._commands.show()])
            self._write([*self._losses.rows(), *taken_out])
            self._write([] if self.ended else self._look(self._stalls.end))
            if every is not None:
                every.finish()
            row = detach_row(
                reason, until_ns, self._plan, self._rows.hits,
                self._losses.count, self._commands, every, self._probes.pauses_ms(),
            )  # fmt: skip
            self._write([row])
        finally:
            if self.everything is not None:
                self.everything.close()
            self._writer.close()
            self._watcher.close()

    def pauses_ms(self) -> dict[str, float]:
        """How long the guest stood still for the recorder, by phase; empty with eBPF."""
        return self._probes.pauses_ms()

    def problems(self) -> list[str]:
        """What was not as before when the recording had ended, in words."""
        return [*self._probes.problems(), *self._losses.problems]

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
        if self.everything is not None:
            self.everything.disarm()
        if isinstance(error, RecorderFailed) and not self._stopped:
            self._write([self._losses.anything()])
            self.stop("the recorder failed")
        elif error is None or not isinstance(error, OSError):
            self.stop("target exited" if self.ended else "interrupted")

    def _disarm(self) -> None:
        self._disarmed = True
        self._probes.close()

    def _survey(self) -> list[Event]:
        """Learn what stacks need and the threads' roles, and what is pending already; after
        arming, as it reads files."""
        if self._surveyed:
            return []
        self._surveyed = True
        self._commands.begin()
        if self._from_start:
            # Nothing was pending, its threads are yet to come, and it may be over soon.
            return []
        try:
            self._roles.survey(self._unwinder)
        except NoSuchProcess:
            return []
        return self._look(lambda: self._stalls.begin(lambda: self._take(self._probes.poll(0))))

    def _look(self, take: Callable[[], list[Event]]) -> list[Event]:
        """Rows of a look; none when the process ends under it, which the watcher will tell."""
        try:
            return take()
        except NoSuchProcess:
            return []

    def _take(self, hits: list[Hit]) -> list[Event]:
        # CPUs reserve and take the time in two steps: neighbours may be swapped.
        rows = []
        for hit in sorted(hits, key=lambda hit: hit.time_ns):
            rows += self._rows.rows(hit)
        return rows

    def _write(self, rows: list[Event]) -> None:
        self._writer.write(rows)
        self._writer.flush()
