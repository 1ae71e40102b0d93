"""What is mapped into a process, and the ELF files behind it."""

from __future__ import annotations

import bisect
import os
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qtrace.binary.module import Module, parse_shared
from qtrace.errors import NoSuchProcess, PermissionMissing, QtraceError
from qtrace.machine.architectures import HOST
from qtrace.machine.guarded import guarded_in
from qtrace.machine.parts import part
from qtrace.machine.stat_file import MAJFLT, MINFLT, VSIZE, stat_fields

# Memory that bears a path: guests' memory, translated code.
NO_FILES = ("/memfd:", "/dev/", "/SYSV", "/anon_hugepage")
# Minor and major faults of all threads, also of those that have ended; the size of all mappings.
COUNTED = (MINFLT, MAJFLT, VSIZE)
# Mappings are read again after so long whatever is counted.
KEPT_S = 60.0
FileKey = tuple[str, int]
"""Device and inode, as /proc/PID/maps prints them."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps; ``file`` is what to open, empty when anonymous."""

    start: int
    end: int
    perms: str
    offset: int
    inode: int
    device: str
    path: str
    file: str

    @property
    def executable(self) -> bool:
        return "x" in self.perms

    @property
    def key(self) -> FileKey:
        return (self.device, self.inode)


class Space(Protocol):
    """The code in a target's memory: of a live process, or of a core.

    Attributes:
        absent: the files that are needed and cannot be read, or trusted, in words.
    """

    absent: set[str]

    def find(self, address: int) -> tuple[Module | None, str] | None:
        """The module mapped at an address (None without a file) and the mapping's name."""

    def refresh(self) -> None:
        """Look for code that is new."""


class AddressSpace:
    """The executable mappings of a process, read at attach and again when code is new.

    The files are opened at once, so that stacks can be unwound after the process is gone;
    they are parsed when a stack first leads there.

    Attributes:
        has_code: whether there were any when they were read last: not while a program is being
            executed, nor when the process has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.has_code = False
        self._files: dict[FileKey, _MappedFile] = {}
        self._starts: list[int] = []
        self._ranges: list[tuple[int, FileKey | None, str]] = []
        self.absent: set[str] = set()
        # Open, it can be read when the leave to open it has been given up.
        self._maps = _open_maps(pid)
        weakref.finalize(self, os.close, self._maps)
        self.refresh()

    def refresh(self) -> None:
        """Read the mappings again; a process that is gone keeps the ones it had."""
        try:
            mappings = read_maps(self.pid)
        except NoSuchProcess:
            return
        except PermissionMissing:
            mappings = _parsed(_read_again(self._maps), self.pid)
        executable = [m for m in mappings if m.executable]
        # The kernel shows [vsyscall] before it has mapped a program.
        self.has_code = any(m.inode for m in executable)
        if not self.has_code:
            return
        for mapping in executable:
            if mapping.inode and mapping.key not in self._files:
                self._files[mapping.key] = _MappedFile(mapping, self.pid)
        self._starts = [m.start for m in executable]
        self._ranges = [(m.end, m.key if m.inode else None, Path(m.path).name) for m in executable]

    def find(self, address: int) -> tuple[Module | None, str] | None:
        """The module mapped at an address, with the mapping's name.

        The module is None for code without a (readable) file, as QEMU's translated code.
        None when nothing executable is mapped there.
        """
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ranges[index][0]:
            return None
        _end, key, name = self._ranges[index]
        file = self._files[key] if key else None
        if file is not None and file.module is None and not file.path.startswith(NO_FILES):
            self.absent.add(f"{file.path} cannot be read")
        return (file.module if file else None), name

    def modules_in(self, folder: str) -> list[Module]:
        """The mapped modules that lie in a folder of this name (QEMU's own: ``qemu``)."""
        found = [f.module for f in self._files.values() if folder in Path(f.path).parts[:-1]]
        return [module for module in found if module is not None]

    def module_of(self, file: str) -> Module | None:
        """The module whose mapping is the file behind a path (by device and inode)."""
        status = os.stat(file)
        for (_device, inode), mapped in self._files.items():
            if inode == status.st_ino and mapped.is_file(status):
                return mapped.module
        return None


class _MappedFile:
    """A mapped file: held open, parsed when first asked for."""

    def __init__(self, mapping: Mapping, pid: int) -> None:
        self._mapping = mapping
        self._fd = _open(mapping, pid)
        if self._fd >= 0:
            weakref.finalize(self, os.close, self._fd)

    @property
    def path(self) -> str:
        return self._mapping.path

    def is_file(self, status: os.stat_result) -> bool:
        return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), status)

    @part
    def module(self) -> Module | None:
        mapping = self._mapping
        if self._fd < 0:
            return None
        name = Path(mapping.path.removesuffix(" (deleted)")).name
        try:
            parsed = parse_shared(self._fd, name)
        except QtraceError:
            return None
        vaddr = parsed.elf.vaddr_of(mapping.offset)
        # What an emulator has mapped of another processor's programs is no code of its own.
        if vaddr is None or parsed.elf.architecture is not HOST:
            return None
        return Module(parsed.elf, mapping.start - vaddr, parsed)


def _open(mapping: Mapping, pid: int) -> int:
    """A descriptor of the mapped file, -1 where it cannot be had.

    map_files is for CAP_SYS_ADMIN only. Without it the file is looked for by its name, and as
    the executable, and must be the one that is mapped.
    """
    for path in (mapping.file, f"/proc/{pid}/root{mapping.path}", f"/proc/{pid}/exe"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        if path == mapping.file or os.fstat(fd).st_ino == mapping.inode:
            return fd
        os.close(fd)
    return -1


class KeptMaps:
    """/proc/PID/maps, read again only when that can have changed.

    Reading the mappings is a third of what a look at an idle guest costs. What is mapped comes
    into use by being written to, and that faults; what is unmapped makes the process smaller. Where
    the kernel has counted no fault since (mm_account_fault() counts those of mlock(2) and
    MAP_POPULATE, too) and the size is the same, the mappings that are in use are the same.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: tuple[str, ...] = ()
        self._read_at = 0.0
        self._maps = b""

    def read(self) -> bytes:
        """The same object as before where nothing can have changed. Raises as ``read_maps``."""
        # Before the mappings are read: what changes meanwhile shows the next time.
        now = self._counted()
        if not now or now != self._known or time.monotonic() - self._read_at >= KEPT_S:
            self._read_at = time.monotonic()
            self._maps = _maps(self._pid)
            self._known = now
        return self._maps

    def mappings(self) -> list[Mapping]:
        """Those that ``read`` has read last."""
        return _parsed(self._maps, self._pid)

    def _counted(self) -> tuple[str, ...]:
        """What changes when memory comes into use or goes; empty where that is not known."""
        try:
            with open(f"/proc/{self._pid}/stat", "rb", 0) as file:
                fields = stat_fields(file.read().decode("utf-8", "replace"))
        except OSError:
            return ()
        return tuple(fields[number] for number in COUNTED) if fields else ()


class GuardedMemory:
    """Anonymous memory of a process that begins with an inaccessible page, as stacks do."""

    def __init__(self, pid: int) -> None:
        self._kept = KeptMaps(pid)
        self._maps = b""
        self._found: list[tuple[int, int]] = []

    def find(self) -> list[tuple[int, int]]:
        """From that page's start to the end of what may be written. Raises as ``read_maps``."""
        maps = self._kept.read()
        if maps is not self._maps:
            self._maps, self._found = maps, guarded_in(maps)
        return self._found


def share_memory(pid: int, other: int) -> bool:
    """Whether two processes write to memory that they have in common, as a QEMU and a vhost-user
    backend do; False where that may not be seen."""
    try:
        return bool(_shared(pid) & _shared(other))
    except (NoSuchProcess, PermissionMissing):
        return False


def _shared(pid: int) -> set[FileKey]:
    # All of the kernel's own files (kvm's, io_uring's) have one and the same inode.
    return {
        mapping.key
        for mapping in read_maps(pid)
        if mapping.perms[1::2] == "ws" and not mapping.path.startswith("anon_inode:")
    }


def read_maps(pid: int) -> list[Mapping]:
    """The mappings of a process.

    Raises:
        NoSuchProcess: it is gone.
        PermissionMissing: it belongs to somebody else.
    """
    return _parsed(_maps(pid), pid)


def _parsed(maps: bytes, pid: int) -> list[Mapping]:
    mappings = []
    for line in maps.decode("utf-8", "surrogateescape").splitlines():
        # The sixth field is the path, which may have spaces.
        fields = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in fields[0].split("-"))
        path = fields[5] if len(fields) > 5 else ""
        inode = int(fields[4])
        # By the kernel's own link: the path may be deleted, or in another mount namespace.
        file = f"/proc/{pid}/map_files/{start:x}-{end:x}" if inode else ""
        mappings.append(
            Mapping(start, end, fields[1], int(fields[2], 16), inode, fields[3], path, file)
        )
    return mappings


def _maps(pid: int) -> bytes:
    fd = _open_maps(pid)
    try:
        return _read_again(fd)
    finally:
        os.close(fd)


def _read_again(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def _open_maps(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchProcess(pid) from error
    except PermissionError as error:
        raise PermissionMissing(
            f"not allowed to read /proc/{pid}/maps",
            "run qtrace as root (sudo qtrace ...), or with CAP_SYS_PTRACE",
        ) from error
