"""Why a thread of a live process cannot move: a signal, a tracer, its cgroup."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path

from qtrace.host.freezer import Freezer, may_be_frozen, shows_frozen
from qtrace.machine.stat_file import EXIT_CODE, stat_fields
from qtrace.machine.thread_files import ThreadFiles

STOPPED, TRACED = "T", "t"


def may_be_held(letter: str, wchan: str) -> bool:
    """Whether a thread's state leaves room for it; an unknown wchan does."""
    return letter in (STOPPED, TRACED) or may_be_frozen(letter, wchan)


class Holders:
    """Who holds the threads of one process."""

    def __init__(self, pid: int, files: ThreadFiles) -> None:
        self._pid = pid
        self._files = files
        self._freezer = Freezer()

    def reason(self, tid: int, letter: str) -> str:
        """In words, as ``Look.held``; empty when nobody does.

        Args:
            letter: the thread's state, as it is now.
        """
        if letter == TRACED:
            return self._tracer(tid)
        if letter == STOPPED:
            return f"stopped by {self._signal()}"
        wchan = self._files.wchan(tid)
        if not may_be_frozen(letter, wchan):
            return ""
        cgroup = self._freezer.cgroup(self._files.read(tid, "cgroup"))
        if cgroup:
            return f"frozen by its cgroup {cgroup}"
        return "frozen, as its wait channel shows" if shows_frozen(letter, wchan) else ""

    def _tracer(self, tid: int) -> str:
        match = re.search(r"^TracerPid:\s*(\d+)", self._files.read(tid, "status"), re.MULTILINE)
        tracer = int(match[1]) if match else 0
        if not tracer:
            # It has let go meanwhile, or is in a pid namespace that this one does not show.
            return "held by a tracer that does not show here"
        name = "gone meanwhile"
        with suppress(OSError):
            name = Path(f"/proc/{tracer}/comm").read_text(errors="surrogateescape").rstrip("\n")
        return f"held by a tracer, process {tracer} ({name})"

    def _signal(self) -> str:
        """The signal's name. Its parent may have taken the number off, by waiting for it."""
        try:
            stat = Path(f"/proc/{self._pid}/stat").read_text(errors="replace")
            number = int(stat_fields(stat)[EXIT_CODE])
            return f"a signal ({signal.Signals(number).name})"
        except (OSError, ValueError, IndexError):
            return "a signal"
