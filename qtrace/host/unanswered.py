"""Questions about a process that the kernel does not answer, and giving up on them.

/proc/PID/mem, cmdline and others wait for the lock of the process's memory map. Who holds it may
sleep for ever: in munmap(2) of a file whose file system has died. Only SIGKILL ends such a wait;
Python never comes to see Ctrl-C.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from qtrace.errors import TargetError
from qtrace.host import privileges
from qtrace.machine.thread_files import system_call
from qtrace.machine.unstoppable import sentence, sleeps_uninterruptibly, unstoppable

T = TypeVar("T")

# For so long a thread of ours may wait for one answer, which comes within microseconds else.
PATIENCE_S = 5.0
LOOK_EVERY_S = 0.2
# Who is watched over for as long as a program runs is looked at each so many times only.
SELDOM = 5
# read, pread64 and getdents64 have a descriptor first; openat, newfstatat and readlinkat a path
# second, readlink first.
BY_DESCRIPTOR = frozenset({0, 17, 217})
BY_PATH = {257: 1, 262: 1, 267: 1, 89: 0}


class NoAnswer(TargetError):
    """The kernel does not answer a question about a process.

    Attributes:
        pid: which.
    """

    def __init__(self, path: str, waited_s: float) -> None:
        self.pid = _pid_of(path)
        asleep = unstoppable(self.pid)
        why = f": {sentence(asleep)}" if asleep else ""
        super().__init__(
            f"the kernel lets nobody read {path}, after {waited_s:.0f} s{why}",
            "wait until that thread goes on: its file system may have died (mount, dmesg)",
        )


class Wait:
    """What one thread of this process waits for, looked at again and again."""

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._seen: tuple[str, bytes] | None = None
        self._since = 0.0

    def unanswered(self) -> tuple[str, float]:
        """The file below /proc/PID that it waits to read, and for how many seconds it has."""
        path = _asked(self._tid)
        seen = (path, _turns(self._tid)) if path else None
        if seen is None or seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return path, time.monotonic() - self._since


def ask(question: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """What ``question`` returns or raises. It may compute for as long as it likes.

    Raises NoAnswer when the kernel does not answer it; it is left waiting then, in a thread that
    does not keep this process from ending.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def put() -> None:
        try:
            answers.append(question())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    join(thread, patience_s)
    if errors:
        raise errors[0]
    return answers[0]


def join(
    thread: threading.Thread, patience_s: float = PATIENCE_S, most_s: float = math.inf
) -> None:
    """Until a thread of ours that asks such questions has ended, or for ``most_s``. It must be a
    daemon.

    Raises NoAnswer when it gets none.
    """
    wait = Wait(thread.native_id or 0)
    until = time.monotonic() + most_s
    while thread.is_alive() and (left := until - time.monotonic()) > 0:
        thread.join(min(left, LOOK_EVERY_S))
        path, waited_s = wait.unanswered()
        if path and waited_s >= patience_s:
            raise NoAnswer(path, waited_s)


def watch_over_this_thread(give_up: Callable[[NoAnswer], None]) -> None:
    """Call ``give_up``, in another thread, when this one gets no answer any more."""
    wait = Wait(threading.get_native_id())

    def watch() -> None:
        for turn in itertools.count():
            time.sleep(LOOK_EVERY_S)
            privileges.follow()
            if turn % SELDOM:
                continue
            path, waited_s = wait.unanswered()
            if path and waited_s >= PATIENCE_S:
                give_up(NoAnswer(path, waited_s))

    threading.Thread(target=watch, daemon=True).start()


def _asked(tid: int) -> str:
    """The file below /proc/PID that a thread of ours sleeps for; empty when it does not."""
    if not sleeps_uninterruptibly(os.getpid(), tid):
        return ""
    with suppress(OSError, ValueError, IndexError):
        with open(f"/proc/self/task/{tid}/syscall") as file:
            call = system_call(file.read())
        if call is None:
            return ""
        if call.number in BY_DESCRIPTOR:
            path = os.readlink(f"/proc/self/fd/{call.arguments[0]}")
        elif call.number in BY_PATH:
            path = os.fsdecode(ctypes.string_at(call.arguments[BY_PATH[call.number]]))
        else:
            return ""
        return path if _pid_of(path) else ""
    return ""


def _pid_of(path: str) -> int:
    """The process that a file tells of; 0 when it is none of /proc/PID."""
    folder, _, rest = path.removeprefix("/proc/").partition("/")
    return int(folder) if path.startswith("/proc/") and folder.isdigit() and rest else 0


def _turns(tid: int) -> bytes:
    """Changes whenever a thread has run; empty when it has ended."""
    with suppress(OSError), open(f"/proc/self/task/{tid}/status", "rb") as file:
        return b"".join(line for line in file if b"ctxt_switches" in line)
    return b""
