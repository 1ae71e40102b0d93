"""How long a thread that sleeps has not run, at least: the kernel's scheduler knows.

``se.exec_start`` in /proc/PID/task/TID/sched is when it last ran, by a clock of the processor that
it ran on; one's own, read on that processor, tells what that clock shows now. Both are older than
they might be, or stand still while the processor does other things (interrupts, a hypervisor's
steal): what lies between them is a lower bound.
"""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from qtrace.machine.stat_file import PROCESSOR, stat_fields

EXEC_START = re.compile(r"^se\.exec_start\s*:\s*(\d+)\.(\d{6})$", re.MULTILINE)
# A processor whose real-time threads leave nobody else in is not waited for.
LIMIT_S = 1.0


def asleep_since_ns(pid: int, tid: int) -> int | None:
    """Since when at the latest, by CLOCK_MONOTONIC. None where the kernel does not tell
    (CONFIG_SCHED_DEBUG), the processor is none of ours (a cpuset), or the thread runs."""
    folder = f"/proc/{pid}/task/{tid}"
    before = _last_ran(folder)
    processor = _processor(folder)
    if before is None or processor is None:
        return None
    now = _clock_of(processor)
    # Who has run meanwhile may have done so elsewhere.
    if now is None or _last_ran(folder) != before or _processor(folder) != processor:
        return None
    return time.monotonic_ns() - max(now - before, 0)


def _last_ran(folder: str) -> int | None:
    """By the clock of the thread's last processor, in nanoseconds."""
    with suppress(OSError):
        match = EXEC_START.search(Path(f"{folder}/sched").read_text(errors="replace"))
        return int(match[1]) * 1_000_000 + int(match[2]) if match else None
    return None


def _processor(folder: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"{folder}/stat").read_text(errors="replace")
        return int(stat_fields(stat)[PROCESSOR])
    return None


def _clock_of(processor: int) -> int | None:
    """A processor's clock now, as a thread reads it that runs there and ends."""
    found: list[int | None] = []

    def read() -> None:
        with suppress(OSError):
            os.sched_setaffinity(0, {processor})
            found.append(_last_ran("/proc/thread-self"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return found[0] if found else None
