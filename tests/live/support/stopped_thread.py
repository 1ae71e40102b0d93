"""One thread of a process that goes on, held by this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qtrace.machine.ptrace import DETACH, INTERRUPT, SEIZE, ptrace, wait_stop
from tests.limits import TIMEOUT_S


@contextmanager
def stopped_thread(tid: int) -> Iterator[None]:
    """To be entered and left by the same thread."""
    ptrace(SEIZE, tid)
    try:
        ptrace(INTERRUPT, tid)
        wait_stop(tid, TIMEOUT_S)
        yield
    finally:
        ptrace(DETACH, tid)
