"""A running QEMU program: found, identified, its memory read; never stopped or changed."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.errors import (
    HasEnded,
    NoSuchProcess,
    NotQemu,
    PermissionMissing,
    QtraceError,
    TargetError,
    UnsupportedBinary,
)
from qtrace.host.pid_namespace import require_proc
from qtrace.host.privileges import OUTSIDE, in_user_namespace
from qtrace.machine import architectures
from qtrace.machine.architecture import Architecture
from qtrace.machine.memory import ProcessMemory
from qtrace.machine.parts import part
from qtrace.machine.stat_file import STARTCODE, STARTSTACK, STARTTIME, stat_fields, state_letter
from qtrace.process.maps import AddressSpace

# What --version prints: qemu-nbd's text differs from all others'.
VERSION = re.compile(rb"(?:version|%s) (\d+\.\d+\.\d+[^\n\0]{0,100})\n(?:Copyright|Written)")
# What has been executed is mapped within so long.
MAPPED_WITHIN_S, AGAIN_S = 1.0, 0.001


@contextmanager
def unless_it_ends(pid: int) -> Iterator[None]:
    """A process that ends inside makes all kinds of things fail: that it has ended is what counts.

    Raises HasEnded.
    """
    try:
        yield
    except (QtraceError, OSError) as error:
        # A dying one has lost its executable before it is a zombie.
        if os.path.lexists(f"/proc/{pid}/exe") and not _is_zombie(pid):
            raise
        if isinstance(error, NoSuchProcess | HasEnded):
            raise
        raise HasEnded(pid) from error


@dataclass(frozen=True)
class Identity:
    """What tells one program in one process from those before and after it, from its stat file.

    ``started`` is kept by exec(2); ``address_space`` is not, and says where the code and the stack
    begin. Without the leave to know, or in a process that is ending, these are 0 or 1.
    """

    started: int
    address_space: tuple[int, int]

    @classmethod
    def of(cls, stat: str) -> Identity | None:
        """None where the process is gone."""
        fields = stat_fields(stat)
        if len(fields) <= STARTSTACK:
            return None
        begins = (int(fields[STARTCODE]), int(fields[STARTSTACK]))
        return cls(int(fields[STARTTIME]), begins)

    def may_be(self, other: Identity) -> bool:
        pairs = zip(self.address_space, other.address_space, strict=True)
        known = [(one, two) for one, two in pairs if min(one, two) > 1]
        return self.started == other.started and all(one == two for one, two in known)


def as_root() -> str:
    """The remedy where a process may not be looked into."""
    if in_user_namespace():
        return f"{OUTSIDE}: what it holds there does not count for the host's processes"
    return "run qtrace as root (sudo qtrace ...), or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"


class Process:
    """A running QEMU program.

    Attributes:
        pid: its process id here.
        program: the executable's file name.
        identity: None when it ended at once.
    """

    def __init__(self, pid: int) -> None:
        """Raises NoSuchProcess, HasEnded, NotQemu, PermissionMissing, TargetError, and
        UnsupportedBinary on a host of another processor than x86-64."""
        self.pid = pid
        require_proc()
        if architectures.HOST is not architectures.TRIED:
            raise _of_another_processor(pid, architectures.HOST)
        if pid <= 0 or not Path(f"/proc/{pid}").exists():
            raise _not_here(pid)
        # Before anything of it is looked at: who finds it the same afterwards has not looked at
        # two programs.
        self.identity = Identity.of(_stat(pid))
        try:
            link = os.readlink(self.exe)
        except FileNotFoundError as error:
            # A kernel thread has no executable; a dead process has none any more.
            if _is_zombie(pid):
                raise HasEnded(pid) from error
            raise NotQemu(f"process {pid}") from error
        except PermissionError as error:
            raise PermissionMissing(f"not allowed to look into process {pid}", as_root()) from error
        self.exe_path = link.removesuffix(" (deleted)")
        self.deleted = link.endswith(" (deleted)")
        self.program = Path(self.exe_path).name

    @property
    def exe(self) -> str:
        """What to open for the executable: right when it is deleted or in another namespace."""
        return f"/proc/{self.pid}/exe"

    @part
    def space(self) -> AddressSpace:
        return AddressSpace(self.pid)

    @part
    def binary(self) -> Module:
        """The executable's module.

        Raises:
            TargetError: it is being executed, and that takes its time.
            NotQemu: it is no ELF program of its own.
            UnsupportedBinary: it is for another processor than this machine's.
        """
        module = self._mapped()
        if module is None and not self.space.has_code:
            raise TargetError(
                f"process {self.pid} is being started: the kernel has not mapped its program yet",
                "try again",
            )
        if module is None:
            # Read it for the sake of its own error (a 32-bit binary, say).
            elf = Elf(self.exe, self.program)
            if elf.architecture is not architectures.HOST:
                raise _of_another_processor(self.pid, elf.architecture)
            raise NotQemu(f"process {self.pid} ({self.program})")
        return module

    def _mapped(self) -> Module | None:
        """In the moment of an exec(2) a process has its executable, and nothing of it is mapped;
        whoever began it by vfork(2) goes on by then."""
        until = time.monotonic() + MAPPED_WITHIN_S
        module = self.space.module_of(self.exe)
        others = 0
        # Its exec may come between two questions: once more, then it has other code than its own.
        while module is None and others < 2 and time.monotonic() < until:
            time.sleep(AGAIN_S)
            self.space.refresh()
            others += self.space.has_code
            module = self.space.module_of(self.exe)
        return module

    @part
    def memory(self) -> ProcessMemory:
        """Raises NoSuchProcess, PermissionMissing."""
        try:
            return ProcessMemory(self.pid)
        except PermissionError as error:
            # Ptrace is not enough: the file itself is its owner's.
            raise PermissionMissing(
                f"not allowed to read the memory of process {self.pid}", as_root()
            ) from error
        except FileNotFoundError as error:
            raise NoSuchProcess(self.pid) from error

    @part
    def version(self) -> str:
        """QEMU's version as its binary spells it, empty when it does not show."""
        return read_version(self.binary.elf)

    def threads(self) -> dict[int, str]:
        """Thread names by host thread id. Raises NoSuchProcess when the process is gone."""
        names = {}
        try:
            tasks = os.listdir(f"/proc/{self.pid}/task")
        except OSError as error:
            raise NoSuchProcess(self.pid) from error
        for task in tasks:
            try:
                raw = Path(f"/proc/{self.pid}/task/{task}/comm").read_bytes()
            except OSError:
                continue
            names[int(task)] = raw.rstrip(b"\n").decode("utf-8", "surrogateescape")
        return names

    def tracer(self) -> int:
        """Pid of whoever ptraces the process, 0 when nobody does."""
        status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        match = re.search(r"^TracerPid:\s*(\d+)", status, re.MULTILINE)
        return int(match[1]) if match else 0

    def describe_tracer(self) -> str:
        """The same for people: ``process 123 (gdb)``; empty when nobody does."""
        tracer = self.tracer()
        if not tracer:
            return ""
        try:
            name = Path(f"/proc/{tracer}/comm").read_text(errors="replace").strip()
        except OSError:
            name = "gone meanwhile"
        return f"process {tracer} ({name})"

    def vm_name(self) -> str:
        """The guest's name (-name), empty when it has none."""
        return name_among(_command_line(self.pid))


def arguments_of(pid: int) -> list[str]:
    """A process's command line; empty when it has ended, or may not be asked."""
    with suppress(OSError):
        return [one.decode("utf-8", "surrogateescape") for one in _command_line(pid)]
    return []


def _command_line(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def name_among(arguments: Sequence[bytes]) -> str:
    """The guest's name (-name) in a command line, empty when it has none."""
    for option, value in itertools.pairwise(arguments):
        if option in (b"-name", b"--name"):
            first = value.split(b",")[0]
            return first.removeprefix(b"guest=").decode("utf-8", "backslashreplace")
    return ""


def _of_another_processor(pid: int, architecture: Architecture) -> UnsupportedBinary:
    return UnsupportedBinary(
        f"process {pid} is one of an {architecture.name} host: live processes are recorded and "
        f"looked at on {architectures.TRIED.name} alone",
        f"take a core (gcore {pid}) for qtrace inspect --core; qtrace scan reads the binary",
    )


def _not_here(pid: int) -> QtraceError:
    """What a process without a folder in /proc is: none, or one that this user may not see."""
    if pid <= 0:
        return NoSuchProcess(pid)
    try:
        # Nothing is sent.
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return NoSuchProcess(pid)
    return PermissionMissing(f"/proc does not show process {pid} to this user (hidepid)", as_root())


def _is_zombie(pid: int) -> bool:
    return state_letter(_stat(pid)) in ("Z", "X")


def _stat(pid: int) -> str:
    """The main thread's stat file, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""


_versions: WeakKeyDictionary[Elf, str] = WeakKeyDictionary()


def read_version(elf: Elf) -> str:
    """The version as the program prints it ("7.2.22 (Debian ...)"), empty when not found."""
    version = _versions.get(elf)
    if version is None:
        match = VERSION.search(elf.data)
        version = match[1].decode("utf-8", "backslashreplace") if match else ""
        _versions[elf] = version
    return version
