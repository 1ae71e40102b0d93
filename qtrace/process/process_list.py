"""The QEMU processes of this machine, and what can attach to each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtrace.errors import NoSuchGuest, PermissionMissing, QtraceError, UnsupportedBinary
from qtrace.host.capabilities import NEEDS_RIGHTS, has_ebpf_rights
from qtrace.host.pid_namespace import require_proc
from qtrace.host.unanswered import NoAnswer, ask
from qtrace.knowledge import PROGRAMS
from qtrace.process.process import Process, name_among

# A list is wanted at once.
PATIENCE_S = 1.0
# Who is so old will hardly become a QEMU; whether it has is asked so often.
YOUNG_S, AGAIN_S = 5.0, 15.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A QEMU process.

    Attributes:
        name: the guest's name (-name), empty when it has none.
        version: as the binary spells it, empty when it cannot be read.
        attach: the recorders that can attach: ``ebpf``, ``gdb``.
        hindrance: why not all of them can, empty when they can.
    """

    pid: int
    program: str
    name: str
    version: str
    threads: int
    attach: tuple[str, ...]
    hindrance: str


def list_processes() -> list[Listed]:
    """The QEMU processes here, by pid; those of other users too."""
    found = []
    require_proc()
    for pid, program in qemu_processes():
        try:
            found.append(_answered(pid, program))
        except (OSError, QtraceError):
            # It ended meanwhile, or is a zombie.
            continue
    return found


def qemu_processes() -> Iterator[tuple[int, str]]:
    """Their pids, in order, and the programs' names, which may be cut off at 15 bytes. Nothing
    is asked that the kernel may leave without an answer."""
    return iter(QemuProcesses().present())


class QemuProcesses:
    """The same again and again: what a process runs is asked anew for as long as it is young (a
    program is started by a fork and an exec), and now and then."""

    def __init__(self) -> None:
        # Since when each is known, when it was asked last, and its program.
        self._known: dict[int, tuple[float, float, str]] = {}

    def present(self) -> list[tuple[int, str]]:
        """As ``qemu_processes``."""
        now = time.monotonic()
        before, self._known = self._known, {}
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            since, asked, program = before.get(pid, (now, 0.0, ""))
            if now - since < YOUNG_S or now - asked >= AGAIN_S:
                with suppress(OSError):
                    self._known[pid] = (since, now, _program(pid))
            else:
                self._known[pid] = (since, asked, program)
        return [(pid, known[2]) for pid, known in self._known.items() if known[2]]


def _program(pid: int) -> str:
    """The QEMU program that it runs, empty where it is none. Raises OSError."""
    with open(f"/proc/{pid}/comm", errors="replace") as file:
        comm = file.read().strip()
    # With debug-threads=on the main thread keeps the program's name.
    program = comm if PROGRAMS.match(comm) else _executable(pid)
    return program if PROGRAMS.match(program) else ""


def guest_name(pid: int) -> str:
    """The guest's name (-name), empty when it has none. Raises OSError, NoAnswer."""
    return name_of_guest(ask(Path(f"/proc/{pid}/cmdline").read_bytes, PATIENCE_S))


def name_of_guest(command_line: bytes) -> str:
    """The same, of /proc/PID/cmdline."""
    return name_among(command_line.split(b"\0"))


def find_guest(name: str) -> int:
    """The process of the guest of that name (-name). Raises NoSuchGuest."""
    listed = list_processes()
    pids = [one.pid for one in listed if one.name == name]
    if len(pids) != 1:
        raise NoSuchGuest(name, pids, [one.name for one in listed if one.name])
    return pids[0]


def _answered(pid: int, comm: str) -> Listed:
    """One that does not let itself be read keeps no other from being listed."""
    try:
        # What else is asked of it waits for the same lock.
        ask(Path(f"/proc/{pid}/cmdline").read_bytes, PATIENCE_S)
        return _list(pid, comm)
    except NoAnswer as error:
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return Listed(pid, comm, "", "", threads, (), error.message)


def _executable(pid: int) -> str:
    """The name of the file that it runs; empty where that may not be known."""
    with suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    return ""


def _list(pid: int, comm: str) -> Listed:
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    try:
        process = Process(pid)
        version = process.version
        name = process.vm_name()
    except PermissionMissing:
        return Listed(pid, comm, "", "", threads, (), "another user's: run qtrace as root")
    except UnsupportedBinary as error:
        return Listed(pid, comm, "", "", threads, (), error.message)
    attach, hindrance = [], []
    if has_ebpf_rights():
        attach.append("ebpf")
    else:
        hindrance.append(NEEDS_RIGHTS)
    tracer = process.tracer()
    if tracer:
        hindrance.append(f"traced by process {tracer}: no gdb")
    else:
        attach.append("gdb")
    return Listed(pid, process.program, name, version, threads, tuple(attach), "; ".join(hindrance))
