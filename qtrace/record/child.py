"""A program of our own that stands before its first instruction until the probes are armed.

We trace it (ptrace) with all that it starts, so that each of them stops whenever it has become
another program: it may be a wrapper (env, chroot, a shell script) that only then becomes QEMU, or
starts QEMU and waits for it (timeout, sudo).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from qtrace.errors import TargetError
from qtrace.machine.ptrace import (
    ALL_THREADS,
    CONT,
    DETACH,
    GETEVENTMSG,
    INTERRUPT,
    LISTEN,
    SEIZE,
    ptrace,
)
from qtrace.machine.readable import readable

# How often tracees are looked at.
LOOK_S = 0.002
# One that sleeps uninterruptibly for longer is traced for as long as we run.
LET_GO_S = 1.0
# PTRACE_O_TRACEFORK, VFORK, CLONE, EXEC, and the events that they make (linux/ptrace.h).
FOLLOW = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4
FORKS, EXEC, STOP = (1, 2, 3), 4, 128
# A whole process stops by them, not only for us.
STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class Child:
    """Forked, not yet the program. ``release`` lets it exec; it must be released or killed.

    Attributes:
        path: what we started.
        pid: the process that stands where a program begins: it, or one that it has started.
    """

    def __init__(self, command: Sequence[str], output_fd: int | None = None) -> None:
        """
        Args:
            command: program and arguments; the program is looked up on the PATH.
            output_fd: where its standard output goes; ours by default.

        Raises TargetError when there is no such program.
        """
        found = shutil.which(command[0])
        if found is None:
            raise TargetError(
                f"there is no program {command[0]}", "give its path, or install it (qemu-utils)"
            )
        self.path = os.path.realpath(found)
        self._command = list(command)
        # Of what we started; that of another that became QEMU is nobody's but its parent's.
        self._status: int | None = None
        gate_read, self._gate = os.pipe()
        self._failed, failed_write = os.pipe()
        self.pid = self._started = os.fork()
        if self.pid == 0:
            self._become(gate_read, failed_write, output_fd)
        self._traced: set[int] = set()
        self._program_fd = self._started_fd = os.pidfd_open(self.pid)
        os.close(gate_read)
        os.close(failed_write)

    def _become(self, gate: int, failed: int, output_fd: int | None) -> None:
        """In the child. Never returns."""
        code = 127
        try:
            os.close(self._gate)
            os.close(self._failed)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            if os.read(gate, 1) == b"!":
                if output_fd is not None:
                    os.dup2(output_fd, 1)
                os.execv(self.path, self._command)
        except OSError as error:
            os.write(failed, str(error.errno).encode())
        finally:
            os._exit(code)

    def release(self) -> None:
        """Let it exec, and wait until it has: it stands before its program's first instruction.

        Raises TargetError when the kernel refuses to run it.
        """
        try:
            ptrace(SEIZE, self.pid, 0, FOLLOW)
        except OSError as error:
            raise TargetError(
                f"cannot hold {self.path} until the probes are armed: ptrace is refused",
                "do not run qtrace itself below strace or gdb; sysctl kernel.yama.ptrace_scope=1",
            ) from error
        self._traced.add(self.pid)
        os.write(self._gate, b"!")
        os.close(self._gate)
        # Its end of the pipe is closed by a successful exec.
        failure = os.read(self._failed, 16)
        os.close(self._failed)
        if failure:
            self.wait()
            reason = os.strerror(int(failure))
            raise TargetError(f"cannot run {self.path}: {reason}", "give a program of this machine")
        self._note(self.pid, os.waitpid(self.pid, 0)[1])

    def next_program(self, given_up: Callable[[], bool]) -> bool:
        """Let all run until one of them has become another program, and stands before its first
        instruction.

        False when the last has ended first, or ``given_up`` says so; then they are still traced.
        """
        self._ask(self.pid, CONT)
        while self._traced and not given_up():
            for tid in tuple(self._traced):
                status = self._stopped(tid)
                if status is None:
                    continue
                if status >> 16 == EXEC:
                    self._stands_in(tid)
                    return True
                self._go_on(tid, status)
            time.sleep(LOOK_S)
        return False

    def go(self) -> None:
        """Let all run on, the program last; from here nobody traces them."""
        others = self._traced - {self.pid}
        asked: set[int] = set()
        deadline = time.monotonic() + LET_GO_S
        while others and time.monotonic() < deadline:
            for tid in others:
                if tid not in asked:
                    # Only one that has stopped can be let go.
                    self._ask(tid, INTERRUPT)
                    asked.add(tid)
                status = self._stopped(tid)
                if status is not None:
                    self._traced.discard(tid)
                    self._ask(tid, DETACH, 0 if status >> 16 else os.WSTOPSIG(status))
            time.sleep(LOOK_S)
            others = self._traced - {self.pid}
        self._ask(self.pid, DETACH)

    def ended(self) -> bool:
        """Whether the program has ended, reaped or not."""
        return bool(readable([self._program_fd], 0))

    def kill(self) -> None:
        """End it at once, whatever it is doing, and what started it."""
        for fd in {self._program_fd, self._started_fd}:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        self.wait()

    def pass_on(self, name: str) -> None:
        """Send it a signal, by name. A terminal's Ctrl-C reached it by itself."""
        with suppress(ProcessLookupError):
            fd = self._started_fd if self.ended() else self._program_fd
            signal.pidfd_send_signal(fd, signal.Signals[name])

    def wait_for_end(self, timeout_s: float) -> bool:
        """Whether what we started has ended, after at most so long."""
        return self._status is not None or bool(readable([self._started_fd], timeout_s))

    def wait(self) -> int:
        """The wait status of what we started, when it has ended."""
        while self._status is None:
            self._note(self._started, os.waitpid(self._started, 0)[1])
        return self._status

    def _stopped(self, tid: int) -> int | None:
        """The wait status of a tracee that has stopped; None while it runs, or when it ended."""
        try:
            pid, status = os.waitpid(tid, os.WNOHANG | ALL_THREADS)
        except ChildProcessError:
            # A thread that ends by the exec of another leaves nothing behind.
            self._traced.discard(tid)
            return None
        if not pid:
            return None
        self._note(tid, status)
        if not os.WIFSTOPPED(status):
            return None
        if status >> 16 in FORKS:
            self._traced.add(_event_message(tid))
        return status

    def _go_on(self, tid: int, status: int) -> None:
        """Let a tracee run that has stopped, with the signal that stopped it, if one did."""
        number, event = os.WSTOPSIG(status), status >> 16
        if event == STOP and number in STOPPING:
            self._ask(tid, LISTEN)
        else:
            self._ask(tid, CONT, 0 if event else number)

    def _ask(self, tid: int, request: int, number: int = 0) -> None:
        # Somebody may have killed it meanwhile.
        with suppress(ProcessLookupError):
            ptrace(request, tid, 0, number)

    def _stands_in(self, tid: int) -> None:
        """It is this process that has become another program."""
        self.pid = tid
        if self._program_fd != self._started_fd:
            os.close(self._program_fd)
        is_started = tid == self._started
        self._program_fd = self._started_fd if is_started else os.pidfd_open(tid)

    def _note(self, tid: int, status: int) -> None:
        if os.WIFSTOPPED(status):
            return
        self._traced.discard(tid)
        if tid == self._started:
            self._status = status


def _event_message(tid: int) -> int:
    """What a stopped tracee's event is about: the id of what it has started."""
    message = ctypes.create_string_buffer(8)
    ptrace(GETEVENTMSG, tid, 0, message)
    return int.from_bytes(message.raw, "little")
