"""One gdb on one target: attached, armed, ended in good order, and checked afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import qtrace
from qtrace.errors import HasEnded, RecorderFailed
from qtrace.gdb.channel import Message, open_channel
from qtrace.gdb.checks import (
    check_usable,
    gdb_unusable,
    original_code,
    ptrace_refused,
    refuse_unstoppable,
)
from qtrace.gdb.instruction_effect import LONGEST, describe, pushed_by_a_byte
from qtrace.gdb.mi import GdbGone, Mi, MiError
from qtrace.gdb.safety.guard import Guard, put_back
from qtrace.gdb.safety.hold import limit_s
from qtrace.gdb.safety.lifeline import Lifeline
from qtrace.gdb.safety.rescue import Breakpoint
from qtrace.gdb.safety.watchdog import restore
from qtrace.gdb.settings import HANDLE, SETTINGS, STOP_SIGNAL, empty_executable
from qtrace.gdb.target_state import changed_code, is_traced_or_stopped, left_behind, thread_states
from qtrace.machine.readable import readable
from qtrace.machine.unstoppable import sentence, unstoppable
from qtrace.process.process import Process

START_S, STEP_S = 20.0, 5.0
# The watchdog ends a gdb that holds the target for too long. This much later we do, should it
# not have.
LATER_S = 2.0
# Nobody is in a stop any more when none was seen for so long, which takes no longer than this.
QUIET_S, QUIET_LIMIT_S = 0.02, 0.5
GAVE_UP_REMEDY = "what was recorded is kept; attach --backend ebpf holds nobody"
REMEDY = "what was recorded is kept; see what ended it (memory?), or use eBPF"


@dataclass
class Ending:
    """How a session ended.

    Attributes:
        paused_ms: how long the guest stood still, by phase: ``attach``, ``end``.
        problems: what was not as before, in words; empty when all was.
    """

    paused_ms: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class GdbSession:
    """gdb, attached to a running QEMU, with a script of ours (qtrace/gdb/inside) inside.

    Make it in the thread that will live longest: gdb ends with it.

    Attributes:
        ending: the pauses so far; the rest is known after ``close``.
        target_gone: the target has ended.
        stopped_by_user: somebody has sent it SIGSTOP; ``close`` leaves it stopped.
    """

    def __init__(self, process: Process, script: str, config: Mapping[str, Any]) -> None:
        """Start gdb and the watchdog. The target is not touched yet.

        Args:
            script: the module of qtrace.gdb.inside that has ``KINDS``.
            config: its orders; all need ``kind``, and ``stops``: the run-time addresses that
                it will set; and those that hold threads on purpose ``limit_s``.

        Raises:
            TargetError: it is being traced, or stopped, or has a probe at one of the stops.
            RecorderUnavailable: no gdb, or one that cannot do this here.
        """
        check_usable(process)
        self._process = process
        self._own = frozenset(config["stops"])
        original = original_code(process, self._own)
        effects = {
            address: effect
            for address in self._own
            if (effect := describe(process.memory.read(address, LONGEST), address)) is not None
        }
        self._code = {
            a: Breakpoint(original[a], pushed_by_a_byte(effects.get(a), a)) for a in self._own
        }
        self._before = changed_code(process)
        self.ending = Ending()
        self._wanted_s = float(config.get("limit_s", 0.0))
        self._gave_up = ""
        self._errors: list[str] = []
        self._failure: RecorderFailed | None = None
        self.target_gone = self.stopped_by_user = False
        self._attached = self._detached = self._closed = self._finished = self._stuck = False
        with ExitStack() as stack:
            self._target = os.pidfd_open(process.pid)
            stack.callback(os.close, self._target)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="qtrace-gdb-")))
            self._channel, theirs = open_channel()
            stack.callback(self._channel.close)
            lifeline = Lifeline.create()
            stack.callback(os.close, lifeline)
            with theirs:
                stand_in = folder / "none"
                stand_in.write_bytes(empty_executable())
                arguments = [word for setting in SETTINGS for word in ("-iex", setting)]
                self._mi = Mi([*arguments, str(stand_in)], pass_fds=(theirs.fileno(), lifeline))
                stack.callback(self._mi.close)
                self._guard = Guard(
                    process, self._target, self._mi.pidfd, lifeline, self._code, self._wanted_s
                )
                stack.callback(self._finish)
                try:
                    self._prepare(
                        (theirs.fileno(), lifeline),
                        script,
                        {
                            **config,
                            "pid": process.pid,
                            "pass_over": {str(a): effect for a, effect in effects.items()},
                        },
                    )
                except (GdbGone, TimeoutError, MiError) as error:
                    raise gdb_unusable(error) from error
            self._cleanup = stack.pop_all()

    def _prepare(self, fds: tuple[int, int], script: str, config: dict[str, Any]) -> None:
        self._mi.wait_ready(START_S)
        self._channel.order(config)
        root = str(Path(qtrace.__file__).resolve().parents[1])
        self._python(
            f"import sys; sys.path.append({root!r}); "
            f"from qtrace.gdb.inside import stops, {script}; "
            f"stops.prepare(*{fds}, {script}.KINDS)"
        )
        self._guard.held()

    def attach(self) -> None:
        """Attach, arm and let the target run on. Whatever it raises, all is put back before.

        Raises:
            RecorderUnavailable: ptrace is refused, or a thread does not stop.
            TargetError: the target has ended, or somebody else traces it meanwhile.
            RecorderFailed: gdb does not do as told, or held the target for too long.
        """
        patience_s = self._patience_s()
        try:
            refuse_unstoppable(self._process)
            began = time.monotonic()
            self._mi.command(f"-target-attach {self._process.pid}", patience_s)
            self._attached = True
            self._mi.wait(lambda r: r["message"] == "stopped", patience_s)
            for command in HANDLE:
                self._mi.console(command, patience_s)
            self._python("stops.arm()")
            self._mi.command("-exec-continue", patience_s)
        except (GdbGone, TimeoutError, MiError) as error:
            refused = isinstance(error, MiError) and not self._attached
            self._stuck = isinstance(error, TimeoutError)
            waits_for = unstoppable(self._process.pid)
            self.close()
            if self.target_gone:
                raise HasEnded(self._process.pid) from error
            if self._stuck and waits_for and not self._gave_up:
                # gdb waits for the main thread before it stops any other.
                self._gave_up = f"it had waited for {patience_s:.1f} s: {sentence(waits_for)}"
            if self._gave_up:
                raise self._gave_up_error() from error
            if refused:
                raise ptrace_refused(self._process, str(error)) from error
            what = str(error) or type(error).__name__
            raise RecorderFailed(f"gdb does not attach: {what}", REMEDY) from error
        except BaseException:
            self.close()
            raise
        self.ending.paused_ms["attach"] = (time.monotonic() - began) * 1000

    def receive(self, timeout_s: float) -> list[Message]:
        """What the script has sent, waiting for a first message at most so long.

        Raises:
            RecorderFailed: gdb has died, and the watchdog has put the target back; or the
                watchdog has died; or somebody has stopped the target. What was sent before
                comes first.
        """
        if self._failure is not None:
            raise self._failure
        if self._closed:
            return []
        fds: list[Any] = [self._channel, self._mi, self._mi.pidfd, self._target, self._guard]
        ready = readable(fds, timeout_s)
        messages = self._messages()
        if self._target in ready:
            self.target_gone = True
        elif self._mi.pidfd in ready or not self._heard(self._mi in ready):
            messages += self.close()
            state = "; ".join(self.ending.problems) or "nothing was left to put back"
            self._failure = (
                self._gave_up_error()
                if self._gave_up
                else RecorderFailed(f"gdb has died ({state})", REMEDY)
            )
        elif self._guard in ready:
            messages += self.close()
            state = "; ".join(self.ending.problems) or "gdb has detached"
            self._failure = RecorderFailed(f"gdb's watchdog has died ({state})", REMEDY)
        elif self.stopped_by_user:
            # Going on would let it run again.
            messages += self.close()
            pid = self._process.pid
            self._failure = RecorderFailed(
                f"process {pid} was stopped by SIGSTOP; gdb has left it so",
                f"kill -CONT {pid} lets it run on",
            )
        if self._failure is not None and not messages:
            raise self._failure
        return messages

    def _heard(self, speaks: bool) -> bool:
        """Read what gdb itself says, so that it need not wait; False when it has ended."""
        try:
            if speaks:
                self._mi.read()
        except GdbGone:
            return False
        return True

    def close(self) -> list[Message]:
        """Detach, end gdb, check the target. Returns the last messages.

        ``ending`` tells how it went; calling it again does nothing.
        """
        if self._closed:
            return []
        self._closed = True
        messages: list[Message] = []
        try:
            if self._attached and not self._stuck and not self._look_gone():
                if unstoppable(self._process.pid):
                    self._let_go(messages)
                else:
                    self._detach(messages)
                    self._guard.disarm()
                self._detached = True
            if not self._stuck:
                self._mi.quit(STEP_S)
        except TimeoutError:
            self._stuck = True
        except (GdbGone, MiError):
            pass  # Out of step with gdb: it will be made to detach by itself.
        self._finish()
        messages += self._messages()
        if not self._look_gone():
            # What fails inside gdb because the target dies is no news.
            self.ending.problems += [f"inside gdb: {text}" for text in self._errors]
            self._check()
        self._cleanup.close()
        return messages

    def _detach(self, messages: list[Message]) -> None:
        self._python("stops.begin_end()")
        messages += self._messages()
        (said,) = (m.facts for m in messages if m.facts["kind"] == "ending")
        began = time.monotonic()
        if said["threads"]:
            if said["running"]:
                signal.pidfd_send_signal(self._target, STOP_SIGNAL)
                self._mi.wait(lambda r: r["message"] == "stopped", self._patience_s())
            self._python("stops.disarm()")
            self._mi.command("-target-detach", self._patience_s())
        self.ending.paused_ms["end"] = (time.monotonic() - began) * 1000

    def _let_go(self, messages: list[Message]) -> None:
        """End gdb without stopping anybody: to detach it would wait for a thread that cannot stop.

        Once the breakpoints are out and nobody is in a stop any more, there is nothing that gdb
        takes along when it is killed.
        """
        self._python("stops.begin_end()")
        self._restore()
        began = quiet = time.monotonic()
        while (now := time.monotonic()) - quiet < QUIET_S and now - began < QUIET_LIMIT_S:
            if is_traced_or_stopped(self._process.pid):
                quiet = now
            time.sleep(0.002)
        messages += self._messages()
        # Whoever was in a stop may have been let go with another one set.
        self._restore()
        self._mi.kill()
        self.ending.paused_ms["end"] = 0.0

    def _restore(self) -> None:
        """Take the breakpoints out, behind gdb's back."""
        path = f"/proc/{self._process.pid}/mem"
        with suppress(OSError), open(path, "r+b", buffering=0) as memory:
            for address, what in self._code.items():
                restore(memory.fileno(), address, what.original)

    def _finish(self) -> None:
        """End whatever is left of gdb; then the watchdog does what is left to do."""
        if self._finished:
            return
        self._finished = True
        if self._mi.alive and (self._stuck or not self._mi.hang_up(STEP_S)):
            self._mi.kill()
        acted = self._guard.finish()
        if not acted and self._attached and not self._detached and not self._look_gone():
            acted = put_back(self._process.pid, self._target, self._code)
        self._gave_up = acted.get("gave_up", "")
        if acted.get("restored"):
            count = len(acted["restored"])
            self.ending.problems.append(f"gdb left {count} breakpoints: they were taken out")
        if acted.get("rescued"):
            count = len(acted["rescued"])
            self.ending.problems.append(f"gdb left {count} threads in a stop: they were helped out")
        if acted.get("continued"):
            self.ending.problems.append("gdb left the process stopped: it was continued")

    def _check(self) -> None:
        """Look at the target when all is over; threads need a moment to be seen running."""
        pid, deadline = self._process.pid, time.monotonic() + STEP_S
        while not self.stopped_by_user and is_traced_or_stopped(pid):
            if time.monotonic() > deadline:
                self.ending.problems.append(f"the process is stopped: kill -CONT {pid}")
                break
            time.sleep(0.005)
        changed = left_behind(self._process, self._before, self._own)
        if changed:
            where = ", ".join(f"{address:#x}" for address in changed)
            self.ending.problems.append(f"its code differs from the file at {where}")

    def _gave_up_error(self) -> RecorderFailed:
        others = self.ending.problems
        state = f" ({'; '.join(others)})" if others else ""
        return RecorderFailed(f"gave up, and ended gdb: {self._gave_up}{state}", GAVE_UP_REMEDY)

    def _patience_s(self) -> float:
        """How long it is waited for gdb while everything is held."""
        threads = len(thread_states(self._process.pid))
        return limit_s(threads, self._wanted_s) + LATER_S

    def _python(self, code: str) -> None:
        self._mi.console(f"python {code}", STEP_S)

    def _messages(self) -> list[Message]:
        messages = self._channel.take()
        for message in messages:
            if message.facts.get("signal") == "SIGSTOP":
                self.stopped_by_user = True
                self._guard.stopped_by_user()
            if message.facts["kind"] == "error":
                self._errors.append(message.facts["text"])
        return messages

    def _look_gone(self) -> bool:
        self.target_gone |= bool(readable([self._target], 0))
        return self.target_gone
