"""Capture before kill: in order of what is surest, each part within its time, nothing stopped."""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qtrace import __version__
from qtrace.autopsy import evidence
from qtrace.autopsy.archive import Writer
from qtrace.autopsy.core_writer import Asleep, core_file
from qtrace.autopsy.kept_memory import (
    NotedMemory,
    first_pages,
    guest_memory,
    read_libraries,
    read_text,
    stack_pages,
    taken,
    written_pages,
)
from qtrace.check.watching import Watching, load
from qtrace.errors import NoSuchProcess, OutputFailed, QtraceError
from qtrace.host.unanswered import join
from qtrace.inspection.qemu import LiveQemu
from qtrace.machine.arch_x86_64 import RBP, RETURN_ADDRESS, RSP
from qtrace.machine.memory import read_word
from qtrace.machine.thread_files import SystemCall, ThreadFiles, system_call
from qtrace.process.live_source import LiveSource
from qtrace.process.maps import read_maps
from qtrace.process.process import Process
from qtrace.process.stack import Unwinder

T = TypeVar("T")

# All of it together; a part that is not over by then is left out.
LIMIT_S = 10.0
# For what comes after the looks; the recording has what is left.
RESERVED_S, END_S = 1.5, 1.0
# They take up to eight seconds of a QEMU that hangs, on a busy host longer; without them all the
# rest says little.
LOOKS_S = 15.0
# What the kernel does not answer within this time it will not answer in ours.
UNANSWERED_S = 2.0
RECORD_S = 3.0
NO_GUEST_RAM = "no guest RAM is in it; stacks and heap of QEMU are, and its command line is not"


@dataclass(frozen=True)
class Said:
    """What ``qtrace inspect`` says: for people, as JSON, and its exit status."""

    text: str
    document: dict[str, Any]
    status: int


@dataclass
class Captured:
    """What came of it.

    Attributes:
        said: None when there were no looks.
        core: the core file that is in it; None when there is none.
        size: of the file, in bytes.
        missing: what is not in the file, and why, in words.
    """

    path: Path
    said: Said | None = None
    core: bytes | None = None
    size: int = 0
    took_s: float = 0.0
    missing: list[str] = field(default_factory=list)


class _TooLong(Exception):
    pass


def capture(
    process: Process, path: Path, force: bool, say: Callable[[LiveQemu], Said], why: str = ""
) -> Captured:
    """Write the autopsy of a process.

    Args:
        say: looks at it, as ``qtrace inspect`` does.
        why: what it was begun for, in words.

    Raises:
        OutputExists, OutputFailed
    """
    began = time.monotonic()
    pid = process.pid
    found = Captured(path)
    program = load()
    writer = Writer(path, force, _about(process, why))

    def left(reserved: float) -> float:
        return began + LIMIT_S - reserved - time.monotonic()

    def part(name: str, seconds: float, take: Callable[[], T]) -> T | None:
        """A part; None, and noted, when there is none."""
        try:
            return _within(seconds, take)
        except _TooLong:
            found.missing.append(f"{name}: not there within {max(seconds, 0):.0f} s")
        except (QtraceError, OSError) as error:
            text = error.message if isinstance(error, QtraceError) else str(error)
            found.missing.append(f"{name}: {text}")
        return None

    def keep(members: Iterable[tuple[str, bytes]] | None) -> None:
        for name, data in members or ():
            if not writer.add(name, data):
                found.missing.append(f"{name}: the file would be too large")

    def with_its_memory(memory: NotedMemory, qemu: LiveQemu) -> None:
        found.said = part("looks", LOOKS_S, lambda: say(qemu))
        if found.said is not None:
            keep([("inspect.txt", found.said.text.encode("utf-8", "surrogateescape"))])
            writer.add_json("inspect.json", found.said.document)
        smaps = part("smaps", max(left(END_S), END_S), lambda: read_text(f"/proc/{pid}/smaps"))
        if smaps:
            keep([("proc/smaps", smaps.encode("utf-8", "surrogateescape"))])
            seconds = max(left(END_S), END_S)
            # Without looks it has no rules to unwind by, or waits for them.
            unwinds = found.said is not None
            found.core = part(
                "core", seconds, lambda: _core(qemu, memory, smaps, unwinds, found.missing)
            )
        if found.core is not None:
            keep([("core", found.core)])
        seconds = min(RECORD_S, left(END_S) - END_S)
        keep(part("recording", left(END_S), lambda: _record(pid, program, seconds, found.missing)))

    try:
        keep(part("process", left(RESERVED_S), lambda: list(evidence.of_process(pid))))
        keep(part("threads", left(RESERVED_S), lambda: list(evidence.of_threads(pid))))
        table = part("descriptors", 2 * END_S, lambda: evidence.of_descriptors(pid))
        keep([table] if table else [])
        keep(part("maps", left(RESERVED_S), lambda: list(evidence.behind_the_lock(pid))))
        readable = part("memory", left(RESERVED_S), lambda: _note_memory(process))
        if readable is not None:
            with_its_memory(*readable)
        else:
            found.missing.append("looks, core, recording: its memory cannot be read")
        again = part("threads again", END_S, lambda: list(evidence.of_threads(pid)))
        keep((f"again/{name}", data) for name, data in again or ())
        found.took_s = time.monotonic() - began
        status = found.said.status if found.said else None
        writer.finish({"missing": found.missing, "took_s": found.took_s, "status": status})
    except OutputFailed:
        writer.abandon()
        raise
    found.size = path.stat().st_size
    return found


def _about(process: Process, why: str) -> dict[str, Any]:
    return {
        "qtrace": __version__,
        "why": why,
        "wall_clock": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "monotonic_ns": time.monotonic_ns(),
        "host": {"kernel": platform.release(), "processors": os.cpu_count()},
        "target": {"pid": process.pid, "program": process.program, "executable": process.exe_path},
        "contents": NO_GUEST_RAM,
    }


def _within(seconds: float, take: Callable[[], T]) -> T:
    """What ``take`` returns or raises. One that does not end is left behind: it may wait for the
    kernel, which only the end of this process ends.

    Raises NoAnswer as soon as that shows.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(take())
        except BaseException as error:
            errors.append(error)

    if seconds <= 0:
        raise _TooLong
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    join(thread, UNANSWERED_S, seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise _TooLong
    return answers[0]


def _note_memory(process: Process) -> tuple[NotedMemory, LiveQemu]:
    """From here on it is noted which of its memory is read."""
    memory = NotedMemory(process.memory)
    # Where the kernel does not answer this, all that comes after would wait in vain, too.
    for first in read_maps(process.pid)[:1]:
        memory.read(first.start, 1)
    process.__dict__["memory"] = memory
    return memory, LiveQemu(process)


def _core(
    qemu: LiveQemu, memory: NotedMemory, smaps: str, unwinds: bool, missing: list[str]
) -> bytes | None:
    """The core, with the threads' frame pointers if it ``unwinds``."""
    process, pid = qemu.process, qemu.process.pid
    guest = guest_memory(smaps)
    if guest is None:
        missing.append("core: the kernel does not tell which memory is the guest's")
        return None
    mappings = read_maps(pid)
    auxv = Path(f"/proc/{pid}/auxv").read_bytes()
    read_libraries(memory, auxv)
    source = LiveSource(process)
    names = source.threads()
    unwinder = qemu.look_unwinder if unwinds else None
    pointers, files = source.thread_pointers(), ThreadFiles(pid)

    def call(tid: int) -> SystemCall | None:
        return system_call(files.read(tid, "syscall"))

    # The main thread is a core's first.
    before = {tid: call(tid) for tid in sorted(names, key=lambda tid: (tid != pid, tid))}
    threads = [
        Asleep(tid, at.pc, at.stack_pointer, at.number, at.arguments, pointers.get(tid, 0),
               _frame_pointer(unwinder, memory, at) if unwinder else 0)
        for tid, at in before.items()
        if at is not None and at.pc
    ]  # fmt: skip
    wanted = memory.pages | first_pages(mappings) | written_pages(pid, mappings)
    wanted.update(*(stack_pages(thread.stack_pointer) for thread in threads))
    pages, left_out = taken(memory, wanted, guest)
    if left_out:
        missing.append(f"core: {', '.join(left_out)}")
    if moved := [str(thread.tid) for thread in threads if call(thread.tid) != before[thread.tid]]:
        which = f"of threads that ran on meanwhile: {', '.join(moved)}"
        missing.append(f"core: stacks that fit together, {which}")
    return core_file(pid, process.program, threads, mappings, pages, auxv)


def _frame_pointer(unwinder: Unwinder, memory: NotedMemory, at: SystemCall) -> int:
    """What a thread has there, as the first of its functions that keeps one shows; else 0."""
    known = {RSP: at.stack_pointer, RETURN_ADDRESS: at.pc}
    chain = unwinder.unwind(known, lambda address: read_word(memory, address))
    return next((one.registers[RBP] for one in chain.frames if RBP in one.registers), 0)


def _record(pid: int, program: Any, seconds: float, missing: list[str]) -> list[tuple[str, bytes]]:
    """A watching recording."""
    if seconds <= 0:
        raise _TooLong
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        path = Path(folder, "trace.csv")
        with Watching(pid, path, program) as watching:
            try:
                watching.wait(seconds)
            except NoSuchProcess:
                missing.append("recording: the process ended meanwhile")
            seen = watching.stop()
        if watching.unseen:
            missing.append(f"recording: {watching.unseen}")
        return [("trace.csv", path.read_bytes())] if seen else []
