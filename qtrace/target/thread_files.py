"""What /proc tells of a process's threads, read again and again: the files stay open."""

from __future__ import annotations

import os


class ThreadFiles:
    """The files below /proc/PID/task, each opened once per thread."""

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/task"
        self._open: dict[tuple[int, str], int] = {}

    def tids(self) -> list[int]:
        """The threads that there are, in the order of their ids; empty without a process."""
        try:
            tids = sorted(int(name) for name in os.listdir(self._folder))
        except OSError:
            return []
        if len(self._open) > 4 * len(tids):
            self._close_all_but(set(tids))
        return tids

    def names(self) -> dict[int, str]:
        """Thread names (comm) by tid."""
        return {tid: self.read(tid, "comm").removesuffix("\n") for tid in self.tids()}

    def read(self, tid: int, name: str) -> str:
        """A file's text now; empty when the thread is gone or the file not to be read."""
        key = (tid, name)
        try:
            if key not in self._open:
                path = f"{self._folder}/{tid}/{name}"
                self._open[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            raw = os.pread(self._open[key], 4096, 0)
        except OSError:
            self._close(key)
            return ""
        return raw.decode("utf-8", "surrogateescape")

    def _close(self, key: tuple[int, str]) -> None:
        fd = self._open.pop(key, -1)
        if fd >= 0:
            os.close(fd)

    def _close_all_but(self, tids: set[int]) -> None:
        for key in [key for key in self._open if key[0] not in tids]:
            self._close(key)

    def __del__(self) -> None:
        for key in list(getattr(self, "_open", {})):
            self._close(key)
