"""What /proc tells of a process's threads, read again and again: the files stay open."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

from qtrace.machine.stat_file import state_letter


@dataclass(frozen=True)
class SystemCall:
    """What a thread's file "syscall" says of one that does not run.

    ``number`` is -1, and ``arguments`` are empty, of one that is in no call.
    """

    number: int
    arguments: tuple[int, ...]
    stack_pointer: int
    pc: int


def system_call(text: str) -> SystemCall | None:
    """Of the text of /proc/PID/task/TID/syscall; None for a thread that runs, is gone, or is not to
    be looked at."""
    fields = text.split()
    if len(fields) not in (3, 9):
        return None
    number, *values = int(fields[0]), *(int(field, 16) for field in fields[1:])
    return SystemCall(number, tuple(values[:-2]), values[-2], values[-1])


def read_system_call(pid: int, tid: int) -> SystemCall | None:
    """What a thread is blocked in; None when in nothing, gone, or not to be looked at."""
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall") as file:
            text = file.read()
    except OSError:
        return None
    call = system_call(text)
    return call if call and call.arguments else None


class ThreadFiles:
    """The files below /proc/PID/task, each opened once per thread.

    Of a process with very many threads only as many stay open as leave room for others: the
    rest is opened for each reading.
    """

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/task"
        self._open: dict[tuple[int, str], int] = {}
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2

    def tids(self) -> list[int]:
        """The threads that there are, in the order of their ids; empty without a process."""
        try:
            tids = sorted(int(name) for name in os.listdir(self._folder))
        except OSError:
            return []
        if len(self._open) > 8 * len(tids):
            self._close_all_but(set(tids))
        return tids

    def names(self) -> dict[int, str]:
        """Thread names (comm) by tid."""
        return {tid: self.read(tid, "comm").removesuffix("\n") for tid in self.tids()}

    def read(self, tid: int, name: str) -> str:
        """A file's text now; empty when the thread is gone or the file not to be read."""
        key = (tid, name)
        fd = self._open.get(key, -1)
        try:
            if fd < 0:
                fd = self._opened(key)
            raw = os.pread(fd, 4096, 0)
        except OSError:
            raw = b""
            self._open.pop(key, None)
        if fd >= 0 and key not in self._open:
            os.close(fd)
        return raw.decode("utf-8", "surrogateescape")

    def letter(self, tid: int) -> str:
        """A thread's state as ps(1) shows it; empty when it is gone."""
        return state_letter(self.read(tid, "stat"))

    def wchan(self, tid: int) -> str:
        """The kernel's function that a thread sleeps in; empty where that is not known.

        Of another user's thread, as of one that runs, the file says "0".
        """
        wchan = self.read(tid, "wchan")
        return "" if wchan == "0" else wchan

    def _opened(self, key: tuple[int, str]) -> int:
        """A descriptor, which is kept while there is room."""
        path = f"{self._folder}/{key[0]}/{key[1]}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # Others took the room: a file that cannot be opened is no thread that has gone.
            self._close_all_but(set())
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if len(self._open) < self._most:
            self._open[key] = fd
        return fd

    def _close_all_but(self, tids: set[int]) -> None:
        for key in [key for key in self._open if key[0] not in tids]:
            os.close(self._open.pop(key))

    def __del__(self) -> None:
        self._close_all_but(set())
