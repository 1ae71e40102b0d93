"""Another process that somebody waits for: what it is, and whether it can move."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtrace.host.held_threads import Holders
from qtrace.machine.syscalls import has_time_limit
from qtrace.machine.thread_files import ThreadFiles, system_call

# Of a process with more threads, so many are looked at.
MOST_THREADS = 256
ENDED = ("", "Z", "X")


@dataclass(frozen=True)
class Peer:
    """A process at one moment.

    Attributes:
        name: its main thread's, as the process has chosen it.
        state: its main thread's, as ps(1) shows it; empty when it has gone.
        held: why it cannot move ("stopped by a signal (SIGSTOP)", "frozen by its cgroup /x"), as
            ``Look.held``; empty while it can.
        hangs: the first thread that sleeps uninterruptibly, in words; empty when none does.
        sleeps_in: the kernel's function that its only thread sleeps in; empty when it runs, when
            that is not known, or with several threads.
        wakes: whether one of its threads sleeps for a time that it has set itself, or waits no
            longer than that: it goes on by itself.
        turns: how many times its threads together have been given a processor: the same at two
            moments when nothing of it moved between them. 0 where that is not known.
    """

    pid: int
    name: str
    state: str
    held: str = ""
    hangs: str = ""
    sleeps_in: str = ""
    wakes: bool = False
    turns: int = 0

    @classmethod
    def of(cls, pid: int) -> Peer:
        files = ThreadFiles(pid)
        name = _name(pid)
        state = files.letter(pid)
        if state in ENDED:
            return cls(pid, name, state)
        tids = files.tids()
        looked_at = tids[:MOST_THREADS]
        turns = [_turns(files.read(tid, "schedstat")) for tid in looked_at]
        known = len(looked_at) == len(tids) and 0 not in turns
        alone = len(tids) == 1 and state == "S"
        return cls(
            pid,
            name,
            state,
            held=Holders(pid, files).reason(pid, state),
            hangs=next((text for tid in looked_at if (text := _hangs(files, tid))), ""),
            sleeps_in=files.wchan(pid).partition(".")[0] if alone else "",
            wakes=any(_wakes(files, tid) for tid in looked_at),
            turns=sum(turns) if known else 0,
        )

    @property
    def text(self) -> str:
        """``process 17333 (qemu-nbd), stopped by a signal (SIGSTOP)``."""
        who = f"process {self.pid} ({self.name or '?'})"
        if self.state in ENDED:
            return f"{who}, which has ended"
        if self.held:
            return f"{who}, {self.held}"
        if self.hangs:
            return f"{who}, whose {self.hangs}"
        return f"{who}, asleep in {self.sleeps_in}" if self.sleeps_in else who


def _name(pid: int) -> str:
    with suppress(OSError):
        raw = Path(f"/proc/{pid}/comm").read_bytes()
        return raw.removesuffix(b"\n").decode("utf-8", "surrogateescape")
    return ""


def _turns(schedstat: str) -> int:
    fields = schedstat.split()
    return int(fields[2]) if len(fields) == 3 else 0


def _wakes(files: ThreadFiles, tid: int) -> bool:
    call = system_call(files.read(tid, "syscall"))
    return call is not None and has_time_limit(call.number, call.arguments)


def _hangs(files: ThreadFiles, tid: int) -> str:
    if files.letter(tid) != "D":
        return ""
    where = files.wchan(tid)
    return f"thread {tid} sleeps uninterruptibly" + (f" in {where}" if where else "")


def namespace(pid: int | str, kind: str) -> str:
    """What tells a process's namespace (``net``, ``mnt``, ``pid``) from others; empty when it is
    not to be seen."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    return ""
