"""For how long gdb may hold threads of its target, and seeing that it holds them longer.

gdb waits until the last thread has stopped, whoever must stand still meanwhile; and no signal but
SIGKILL ends it then. Seen from outside, by its watchdog: the standard library only.
"""

from __future__ import annotations

import os
import time

from qtrace.machine.stat_file import state_letter
from qtrace.machine.unstoppable import unstoppable

# To attach to, or to stop, takes gdb some 10 ms and 0.5 ms more for each thread; what it does at a
# stop less than one. Where a thread sleeps uninterruptibly there is nothing to hope for.
LIMIT_S, PER_THREAD_S = 1.0, 0.001
# Where none does, the host's processors may be busy: 1.1 s were seen with ten others for each.
BUSY_LIMIT_S = 3.0
# How often it is looked, and how much longer than a look takes until the next: of many threads it
# takes a while.
LOOK_EVERY_S, SHARE = 0.1, 20


def limit_s(threads: int, wanted_s: float = 0.0) -> float:
    """The longest that a thread may be held in one go.

    Args:
        wanted_s: for how long it may be held on purpose.
    """
    return BUSY_LIMIT_S + threads * PER_THREAD_S + wanted_s


class HoldLimit:
    """Looks again and again at who is held.

    Attributes:
        next_look: when, by ``time.monotonic``.
    """

    def __init__(self, pid: int, wanted_s: float) -> None:
        self._pid, self._wanted_s = pid, wanted_s
        self._since: dict[tuple[int, bytes], float] = {}
        self.next_look = time.monotonic()

    def exceeded(self) -> float:
        """For how many seconds some thread has been held, if that is too long; else 0."""
        began = time.monotonic()
        try:
            tids = [int(name) for name in os.listdir(f"/proc/{self._pid}/task")]
        except OSError:
            tids = []
        stops = {stop for tid in tids if (stop := _stop_of(self._pid, tid)) is not None}
        self._since = {stop: self._since.get(stop, began) for stop in stops}
        held_s = began - min(self._since.values(), default=began)
        self.next_look = began + max(LOOK_EVERY_S, SHARE * (time.monotonic() - began))
        limit = limit_s(len(tids), self._wanted_s)
        hopeless = limit - BUSY_LIMIT_S + LIMIT_S
        if held_s > limit or (held_s > hopeless and unstoppable(self._pid)):
            return held_s
        return 0.0


def _stop_of(pid: int, tid: int) -> tuple[int, bytes] | None:
    """Which stop a tracer holds a thread in, None where none does."""
    folder = f"/proc/{pid}/task/{tid}"
    try:
        with open(f"{folder}/stat", errors="replace") as file:
            if state_letter(file.read()) != "t":
                return None
        with open(f"{folder}/status", "rb") as file:
            # Whoever has run since has been let go and stopped again.
            return tid, b"".join(line for line in file if b"ctxt_switches" in line)
    except OSError:
        return None
