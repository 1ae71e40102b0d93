"""Threads that cannot be stopped: who sleeps uninterruptibly stops when what it waits for comes.

That may be never, behind a file system that has died. gdb waits for such a thread, and holds all
others meanwhile. Nothing here opens or asks for a file of the target's, which would hang likewise.

gdb's watchdog runs this too: the standard library only.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass

from qtrace.machine.ptrace import INTERRUPT, SEIZE, let_go, ptrace, wait_stop
from qtrace.machine.stat_file import state_letter
from qtrace.machine.syscalls import syscall_name
from qtrace.machine.thread_files import system_call

# Some sleep so that a signal wakes them, and from then on uninterruptibly: a FUSE file system is
# told that its question was interrupted, and then waited for (fs/fuse/dev.c).
WAKES_TO_WAIT_ON = frozenset({"request_wait_answer"})
# The calls that QEMU makes of a file whose first argument is its descriptor.
OF_A_FILE = frozenset({
    0, 1, 3, 5, 8, 16, 17, 18, 19, 20, 72, 73, 74, 75, 77, 138, 277, 285, 295, 296, 327, 328,
})  # fmt: skip
# What is waited for to see whether a process can be stopped: longer than a disk under load takes
# for an fsync(2). Nobody but the thread that is being tried is held meanwhile, and it sleeps.
REHEARSAL_S = 1.0
# Of many threads so many are told in full: who is at the root need not be the first.
SHOWN = 3


@dataclass(frozen=True)
class Unstoppable:
    """A thread that does not stop.

    Attributes:
        call: the system call that it is in, empty when not known.
        channel: the kernel's function that it sleeps in, empty when not known.
        file: what the call's descriptor is, empty when there is none.
        asleep: it sleeps uninterruptibly; else it has not had a processor to stop on.
    """

    tid: int
    name: str
    call: str
    channel: str
    file: str
    asleep: bool = True

    @property
    def sentence(self) -> str:
        if not self.asleep:
            return f"thread {self.tid} ({self.name}) had no processor yet"
        where = self.call or "the kernel"
        of = f" of {self.file}" if self.file else ""
        channel = f" ({self.channel})" if self.channel else ""
        return f"thread {self.tid} ({self.name}) sleeps uninterruptibly in {where}{of}{channel}"


def sentence(threads: list[Unstoppable]) -> str:
    """All of them in one, the first few in full."""
    more = len(threads) - SHOWN
    shown = "; ".join(thread.sentence for thread in threads[:SHOWN])
    return shown + (f"; and {more} more" if more > 0 else "")


def describe(pid: int, tid: int) -> Unstoppable:
    """What a thread sleeps in, as /proc tells."""
    call, file = "", ""
    sleeps_in = system_call(_read(pid, tid, "syscall"))
    if sleeps_in is not None and sleeps_in.arguments:
        call = syscall_name(sleeps_in.number, sleeps_in.arguments[1])
        if sleeps_in.number in OF_A_FILE:
            with suppress(OSError):
                file = os.readlink(f"/proc/{pid}/fd/{sleeps_in.arguments[0]}")
    channel = _read(pid, tid, "wchan")
    # Without the right to see it the kernel says "0".
    name = _inert(_read(pid, tid, "comm").rstrip("\n"))
    channel = channel if channel != "0" else ""
    asleep = sleeps_uninterruptibly(pid, tid)
    return Unstoppable(tid, name, call, channel, _inert(file), asleep)


def unstoppable(pid: int) -> list[Unstoppable]:
    """The threads that look as if they could not be stopped, without trying."""
    return [describe(pid, tid) for tid in _tids(pid) if sleeps_uninterruptibly(pid, tid)]


def sleeps_uninterruptibly(pid: int, tid: int) -> bool:
    """Whether a thread does now, or would as soon as it is to stop."""
    state = state_letter(_read(pid, tid, "stat"))
    return state == "D" or _read(pid, tid, "wchan") in WAKES_TO_WAIT_ON


def rehearse(pid: int, limit_s: float = REHEARSAL_S) -> Unstoppable | None:
    """Stop each thread for an instant, one after the other; the first that sleeps on instead.

    Done by a thread of its own: the kernel lets go of all that it traces when it ends, of a
    thread that has not stopped too, which then goes on when it can.
    """
    found: list[Unstoppable] = []

    def try_each() -> None:
        for tid in _tids(pid):
            # It may have ended, or be the kernel's, or not be ours to trace: gdb will say so.
            with suppress(OSError):
                ptrace(SEIZE, tid)
                ptrace(INTERRUPT, tid)
                try:
                    let_go(tid, wait_stop(tid, limit_s))
                except TimeoutError:
                    # One that has had no processor in this time will stop when it gets one.
                    if sleeps_uninterruptibly(pid, tid):
                        found.append(describe(pid, tid))
                        return

    tracer = threading.Thread(target=try_each)
    tracer.start()
    tracer.join()
    return found[0] if found else None


def _inert(text: str) -> str:
    """What the target has named, fit for a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _tids(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []


def _read(pid: int, tid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/task/{tid}/{name}", "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
