"""A program of our own that stands before its first instruction until the probes are armed.

The child asks to be traced (ptrace), so that it stops whenever it has become another program: it
may be a wrapper (env, chroot, setpriv, a shell script) that only then becomes QEMU.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from qtrace.errors import TargetError
from qtrace.machine.ptrace import CONT, DETACH, TRACEME, ptrace
from qtrace.machine.readable import readable

# How often a wrapper is looked at: its end, too, is one of our child's.
LOOK_S = 0.002
NOT_TRACED = b"t"


class Child:
    """Forked, not yet the program. ``release`` lets it exec; it must be released or killed."""

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
        self._status: int | None = None
        gate_read, self._gate = os.pipe()
        self._failed, failed_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(gate_read, failed_write, output_fd)
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
                try:
                    ptrace(TRACEME, 0)
                except OSError:
                    os.write(failed, NOT_TRACED)
                    return
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
        os.write(self._gate, b"!")
        os.close(self._gate)
        # Its end of the pipe is closed by a successful exec.
        failure = os.read(self._failed, 16)
        os.close(self._failed)
        if failure == NOT_TRACED:
            self.wait()
            raise TargetError(
                f"cannot hold {self.path} until the probes are armed: ptrace is refused",
                "do not run qtrace itself below strace or gdb; sysctl kernel.yama.ptrace_scope=1",
            )
        if failure:
            self.wait()
            reason = os.strerror(int(failure))
            raise TargetError(f"cannot run {self.path}: {reason}", "give a program of this machine")
        self._note(os.waitpid(self.pid, 0)[1])

    def next_program(self, given_up: Callable[[], bool]) -> bool:
        """Let it run until it has become another program, and stands before its first instruction.

        False when it has ended first, or ``given_up`` says so; it is then still traced.
        """
        ptrace(CONT, self.pid)
        while not given_up():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                time.sleep(LOOK_S)
                continue
            self._note(status)
            if self._status is not None:
                return False
            if os.WSTOPSIG(status) == signal.SIGTRAP:
                return True
            ptrace(CONT, self.pid, 0, os.WSTOPSIG(status))
        return False

    def go(self) -> None:
        """Let it run from its first instruction on; from here nobody traces it."""
        if self._status is None:
            # Somebody may have killed it meanwhile.
            with suppress(ProcessLookupError):
                ptrace(DETACH, self.pid)

    def ended(self) -> bool:
        """Whether it has ended, reaped or not."""
        if self._status is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def pass_on(self, name: str) -> None:
        """Send it a signal, by name. A terminal's Ctrl-C reached it by itself."""
        if self._status is None:
            os.kill(self.pid, signal.Signals[name])

    def wait_for_end(self, timeout_s: float) -> bool:
        """Whether it has ended, after at most so long."""
        if self._status is None:
            fd = os.pidfd_open(self.pid)
            try:
                return bool(readable([fd], timeout_s))
            finally:
                os.close(fd)
        return True

    def wait(self) -> int:
        """Its wait status, when it has ended."""
        while self._status is None:
            self._note(os.waitpid(self.pid, 0)[1])
        return self._status

    def _note(self, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._status = status
