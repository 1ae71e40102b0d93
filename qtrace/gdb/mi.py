"""gdb's machine interface: a gdb of our own, one command at a time.

pygdbmi parses the lines. Reading them is ours: pygdbmi's controller either waits 0.2 s for more
output after each command, or, told not to, always until its time-out.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pygdbmi.gdbmiparser import parse_response

from qtrace.errors import RecorderUnavailable
from qtrace.gdb.safety.priority import GDB_PRIORITY, hurry
from qtrace.host.with_parent import end_with_parent
from qtrace.machine.readable import readable

Record = dict[str, Any]

# A killed gdb is gone within milliseconds, if the kernel does not wait for something itself.
KILLED_S = 5.0


class MiError(Exception):
    """gdb refused a command; the text is gdb's own."""


class GdbGone(Exception):
    """gdb has ended."""


class Mi:
    """A gdb that reads and writes its machine interface.

    Should the thread that made it die, the kernel sends gdb SIGHUP, upon which it detaches
    from its target and ends; SIGTERM or SIGKILL would leave breakpoints behind. It is in a
    session of its own, so that Ctrl-C on the terminal is not for it.

    Attributes:
        pidfd: becomes readable when gdb has ended.
    """

    def __init__(self, arguments: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        """Raises RecorderUnavailable when there is no gdb."""
        path = shutil.which("gdb")
        if path is None:
            raise RecorderUnavailable("gdb is not installed", "apt-get install gdb")
        # gdb's Python is the distribution's: this environment is none of its business.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [path, "-nx", "-q", "--interpreter=mi3", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"LC_ALL": "C.UTF-8"},
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=_begin,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._rest = b""
        self._token = 0
        self._records: deque[Record] = deque()

    def fileno(self) -> int:
        """Readable when gdb has said something (``read``)."""
        return self._output.fileno()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the first prompt. Raises GdbGone, TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while b"(gdb)" not in self._rest:
            self._fill(deadline)
        self._take_lines()

    def command(self, text: str, timeout_s: float) -> Record:
        """Execute one MI command; its result record.

        Raises:
            MiError: gdb refuses it.
            GdbGone: gdb has ended.
            TimeoutError: no answer in time.
        """
        self._token += 1
        token = self._token
        try:
            self._input.write(f"{token}{text}\n".encode())
        except BrokenPipeError as error:
            raise GdbGone from error
        record = self.wait(lambda r: r["type"] == "result" and r["token"] == token, timeout_s)
        if record["message"] == "error":
            raise MiError((record["payload"] or {}).get("msg", "unknown error"))
        return record

    def console(self, text: str, timeout_s: float) -> Record:
        """Execute a command of gdb's command line; see ``command``."""
        return self.command(f"-interpreter-exec console {json.dumps(text)}", timeout_s)

    def wait(self, wanted: Callable[[Record], bool], timeout_s: float) -> Record:
        """The next record that is wanted; those before it are dropped.

        Raises GdbGone, TimeoutError.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            while self._records:
                record = self._records.popleft()
                if wanted(record):
                    return record
            self._fill(deadline)
            self._take_lines()

    def read(self) -> list[Record]:
        """The records that are there, without waiting. Raises GdbGone."""
        if readable([self._output], 0):
            self._fill(time.monotonic())
            self._take_lines()
        records = list(self._records)
        self._records.clear()
        return records

    def hang_up(self, timeout_s: float) -> bool:
        """Let gdb detach and end, as when a terminal closes; whether it has ended in time."""
        if self.alive:
            self._process.send_signal(signal.SIGHUP)
        return self._ended(timeout_s)

    def kill(self) -> None:
        """The last resort: what gdb changed is then the watchdog's to put back."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_S)

    def quit(self, timeout_s: float) -> bool:
        """End a gdb that has detached; whether it has ended in time."""
        with suppress(BrokenPipeError):
            self._input.write(b"-gdb-exit\n")
        return self._ended(timeout_s)

    def close(self) -> None:
        """Close the pipes of a gdb that has ended."""
        self._input.close()
        self._output.close()
        os.close(self.pidfd)

    def _ended(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.alive:
            # Its last words have to be read, or it waits for room in the pipe.
            try:
                self._fill(deadline)
            except TimeoutError:
                return False
            except GdbGone:
                try:
                    self._process.wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    return False
        return True

    def _fill(self, deadline: float) -> None:
        """Read once, waiting until there is something to read."""
        left = max(deadline - time.monotonic(), 0)
        if not readable([self._output], left):
            raise TimeoutError
        data = os.read(self._output.fileno(), 1 << 16)
        if not data:
            raise GdbGone
        self._rest += data

    def _take_lines(self) -> None:
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "backslashreplace").strip()
            if text and text != "(gdb)":
                self._records.append(parse_response(text))


def _begin() -> None:
    end_with_parent(signal.SIGHUP)
    hurry(GDB_PRIORITY)
