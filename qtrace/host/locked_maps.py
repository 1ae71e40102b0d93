"""Memory maps that are locked for as long as a file system is dead: no uprobe may be set then.

uprobe_register() takes the lock of the memory map of every process that has the file mapped,
whichever process the probe is for (register_for_each_vma() in kernel/events/uprobes.c), and keeps
dup_mmap() waiting meanwhile: until it has all of them no process can be forked on the whole host.
Who holds such a lock may sleep for ever, in munmap(2) of a file whose server has died.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from qtrace.errors import RecorderUnavailable
from qtrace.host.owners import pids
from qtrace.host.peer import namespace
from qtrace.host.unanswered import NoAnswer, ask
from qtrace.machine.syscalls import KVM_RUN, syscall_name
from qtrace.machine.thread_files import ThreadFiles, system_call

# For so long a process may take to tell its command line, for which that lock is needed, and a
# thread may be in one and the same sleep: a slow disk takes less.
PATIENCE_S = 1.0
# Nearly always that is over at once, and a QEMU that starts is to be armed before it runs on: who
# sleeps is looked at again after so long, then after twice as long, and so on.
SOON_S, AGAIN_S = 0.001, 0.05
# mmap, mprotect, munmap, brk, mremap, madvise; ioctl(KVM_RUN) and -1 (in no call) fault pages in.
CHANGES_MAP = frozenset({9, 10, 11, 12, 25, 28})
IOCTL, IN_NO_CALL = 16, -1
DELETED = " (deleted)"


def refuse_while_locked(exe: str, pid: int) -> None:
    """Before probes are set in a program.

    Args:
        exe: what to open for it: a path, or the link in /proc/PID.
        pid: the process that they are for, 0 where there is none yet.

    Raises:
        RecorderUnavailable: of a process that runs it the memory map is locked.
    """
    program = _program(exe) if exe.startswith("/proc/") else os.path.realpath(exe)
    here = namespace(pid or "self", "mnt")
    same = []
    for other in pids():
        own = _program(f"/proc/{other}/exe")
        if own and (
            own == program
            # In another mount namespace the same file may have another path.
            or (
                os.path.basename(own) == os.path.basename(program)
                and namespace(other, "mnt") != here
            )
        ):
            same.append(other)
    for other, why in _locked(same):
        raise RecorderUnavailable(
            f"probes cannot be set in {program} now: process {other}, which runs it, too, has"
            f" its memory map locked ({why}): the kernel would wait for it, and meanwhile no"
            " process could be started on this host",
            "wait until it goes on, or end it: its file system may have died (mount, dmesg)",
        )


def why_locked(pid: int) -> str:
    """Why a process's memory map seems to be locked for long, in words; empty when it is not."""
    return next((why for _pid, why in _locked([pid])), "")


def _locked(processes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Those whose memory map seems to be locked for long, and why; the others have answered."""
    for pid in processes:
        if why := _why_asleep(pid):
            yield pid, why

    def answers() -> None:
        for pid in processes:
            # One that has ended meanwhile has no map.
            with suppress(OSError):
                Path(f"/proc/{pid}/cmdline").read_bytes()

    try:
        # All by one thread: a busy host takes its time to give each a processor.
        ask(answers, PATIENCE_S)
    except NoAnswer as error:
        yield error.pid, error.message


def _why_asleep(pid: int) -> str:
    files = ThreadFiles(pid)
    asleep = {tid: seen for tid in files.tids() if (seen := _asleep_in_map(files, tid))}
    until = time.monotonic() + PATIENCE_S
    pause_s = SOON_S
    while asleep and time.monotonic() < until:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, AGAIN_S)
        asleep = {tid: seen for tid, seen in asleep.items() if _asleep_in_map(files, tid) == seen}
    for tid, (name, _times) in asleep.items():
        channel = files.wchan(tid)
        where = f" ({channel})" if channel else ""
        return f"thread {tid} sleeps uninterruptibly in {name}{where}"
    return ""


def _asleep_in_map(files: ThreadFiles, tid: int) -> tuple[str, str] | None:
    """What a thread sleeps in that may hold the lock, and what changes when it has run."""
    if files.letter(tid) != "D":
        return None
    call = system_call(files.read(tid, "syscall"))
    if call is None:
        return None
    running_guest = call.number == IOCTL and call.arguments[1:2] == (KVM_RUN,)
    if call.number == IN_NO_CALL or running_guest:
        name = "a page fault"
    elif call.number in CHANGES_MAP:
        name = syscall_name(call.number)
    else:
        return None
    return name, files.read(tid, "schedstat")


def _program(link: str) -> str:
    """The path of a process's executable; empty where it has none, or is not to be seen."""
    with suppress(OSError):
        return os.readlink(link).removesuffix(DELETED)
    return ""
