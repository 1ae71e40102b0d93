"""The format of core files, gcore's and the kernel's: notes, registers, memory."""

from __future__ import annotations

import bisect
import mmap
import os
import signal
import stat
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qtrace.errors import TargetError, UnsupportedBinary
from qtrace.target.aio.ending import FATAL, SENT
from qtrace.target.aio.model import Ending
from qtrace.target.arch_x86_64 import PAGE
from qtrace.target.elf import Elf

ET_CORE, EM_X86_64, PT_LOAD, PT_NOTE = 4, 62, 1, 4
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE, NT_SIGINFO = 1, 3, 6, 0x46494C45, 0x53494749
NT_GNU_BUILD_ID = 3
AT_PHDR = 3
# struct elf_prstatus: pid, then the registers of user_regs_struct; struct elf_prpsinfo: pid.
PRSTATUS_SIGNAL, PRSTATUS_PID, PRSTATUS_REGS, PRPSINFO_PID = 12, 32, 112, 24
PRSTATUS_SIZE = PRSTATUS_REGS + 27 * 8
# siginfo_t: si_signo, si_errno, si_code; then, of a signal that somebody sent, si_pid.
SIGINFO = struct.Struct("<iii4xi")
PACKED = {b"\x28\xb5\x2f\xfd": "zstd -d", b"\x04\x22\x4d\x18": "lz4 -d",
          b"\xfd7zX": "xz -d", b"\x1f\x8b": "gzip -d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A PT_LOAD of the core: run-time addresses, and what of it was dumped."""

    start: int
    end: int
    offset: int
    dumped: int


@dataclass(frozen=True, slots=True)
class FilePart:
    """A line of NT_FILE: a file that was mapped."""

    start: int
    end: int
    offset: int
    path: str


class CoreFile:
    """A core: its notes and its memory.

    Pages that were not dumped because a file has them are read from that file, once its
    build id has been found to be the one in the core (``trust``). Of a core whose end was not
    written (a full disk, a limit) the rest can be read, as long as that has the notes.

    Attributes:
        size: how long its headers say that it is, in bytes.

    Raises:
        TargetError: not a core file, one without its notes, or not readable.
        UnsupportedBinary: the core of another kind of machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                # A pipe (`<(zstd -dc core.zst)`) cannot be read here and there.
                raise TargetError(f"{path} is no regular file", "unpack the core into a file first")
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < 64:
                    raise no_core(path, "it is too short")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TargetError(
                f"cannot read {path}: {reason}", "name a readable core file, as gcore writes it"
            ) from error
        try:
            self._read_headers()
        except (struct.error, IndexError) as error:
            raise no_core(path, "its headers are damaged") from error
        self._starts = [part.start for part in self.parts]
        self._trusted: list[tuple[FilePart, Elf]] = []

    def _read_headers(self) -> None:
        data = self._data
        if data[:4] != b"\x7fELF":
            for magic, command in PACKED.items():
                if data[: len(magic)] == magic:
                    raise TargetError(f"{self.path} is compressed", f"unpack it first: {command}")
            raise no_core(self.path, "it is no ELF file")
        kind, machine = struct.unpack_from("<HH", data, 16)
        if data[4] != 2 or machine != EM_X86_64:
            raise UnsupportedBinary(
                f"{self.path} is the core of another machine than x86-64",
                "run qtrace on a core of an x86-64 QEMU",
            )
        if kind != ET_CORE:
            raise no_core(self.path, "it is a program or a library")
        (headers,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        if count == 0xFFFF:
            # More than 65,534 segments: the number stands in the first section header.
            (sections,) = struct.unpack_from("<Q", data, 40)
            (count,) = struct.unpack_from("<I", data[sections : sections + 64].ljust(64), 44)
        parts, notes = [], []
        self.size = 0
        for number in range(count):
            raw = data[headers + number * size : headers + number * size + 56]
            if len(raw) < 56:
                raise self._truncated()
            segment, _flags, offset, start, _physical, dumped, length, _align = struct.unpack(
                "<IIQQQQQQ", raw
            )
            self.size = max(self.size, offset + dumped)
            if segment == PT_LOAD:
                parts.append(Part(start, start + length, offset, dumped))
            elif segment == PT_NOTE:
                if offset + dumped > len(data):
                    raise self._truncated()
                notes += read_notes(data[offset : offset + dumped])
        self.parts = sorted(parts, key=lambda part: part.start)
        self._notes = notes

    @property
    def truncated(self) -> str:
        """How much of it is not there, empty when it is whole."""
        here = len(self._data)
        return f"{here:,} of its {self.size:,} bytes are here" if here < self.size else ""

    def _truncated(self) -> TargetError:
        return TargetError(
            f"{self.path} is truncated before what tells its threads ({len(self._data)} bytes "
            "are here)",
            "write it again with enough disk space and `ulimit -c unlimited`, or with gcore",
        )

    def notes(self, kind: int) -> list[bytes]:
        """The notes of one kind (NT_*)."""
        return [description for found, description in self._notes if found == kind]

    @cached_property
    def registers(self) -> dict[int, tuple[int, ...]]:
        """user_regs_struct by tid."""
        found = {}
        for raw in self.notes(NT_PRSTATUS):
            if len(raw) < PRSTATUS_SIZE:
                continue
            (tid,) = struct.unpack_from("<i", raw, PRSTATUS_PID)
            found[tid] = struct.unpack_from("<27Q", raw, PRSTATUS_REGS)
        return found

    @cached_property
    def pid(self) -> int:
        """The process id, which is the main thread's tid; 0 when the core does not tell."""
        raw = b"".join(self.notes(NT_PRPSINFO)[:1])
        return int(struct.unpack_from("<i", raw, PRPSINFO_PID)[0]) if len(raw) > 28 else 0

    def ending(self, message: str = "") -> Ending | None:
        """The signal that the kernel wrote it for; None of a process that was only copied.

        Args:
            message: what abort() was told.
        """
        first = next(iter(self.notes(NT_PRSTATUS)), b"")
        about = next(iter(self.notes(NT_SIGINFO)), b"")
        if len(first) < PRSTATUS_SIZE or len(about) < SIGINFO.size:
            return None
        # The kernel writes the thread first that the signal hit.
        (number,) = struct.unpack_from("<h", first, PRSTATUS_SIGNAL)
        (tid,) = struct.unpack_from("<i", first, PRSTATUS_PID)
        same, _errno, code, sender = SIGINFO.unpack_from(about)
        if number not in FATAL or number != same:
            return None
        outside = sender if code in SENT and sender != self.pid else 0
        return Ending(signal.Signals(number).name, tid, outside, "" if outside else message)

    @cached_property
    def auxv(self) -> bytes:
        return b"".join(self.notes(NT_AUXV)[:1])

    @cached_property
    def files(self) -> list[FilePart]:
        """What NT_FILE lists, by address."""
        found = []
        for raw in self.notes(NT_FILE):
            if len(raw) < 16:
                continue
            count, page = struct.unpack_from("<QQ", raw, 0)
            names = raw[16 + 24 * count :].split(b"\0")
            for number in range(min(count, len(names), (len(raw) - 16) // 24)):
                start, end, offset = struct.unpack_from("<QQQ", raw, 16 + 24 * number)
                name = names[number].decode("utf-8", "surrogateescape")
                found.append(FilePart(start, end, offset * page, name))
        return sorted(found, key=lambda file: file.start)

    def file_at(self, address: int) -> FilePart | None:
        """The file mapped at an address."""
        return next((f for f in self.files if f.start <= address < f.end), None)

    def first_of(self, path: str) -> FilePart | None:
        """The mapping of a file's beginning."""
        return next((f for f in self.files if f.path == path and not f.offset), None)

    def program_path(self) -> str:
        """The path of the executable when it ran: whose program headers the kernel passed."""
        for kind, value in struct.iter_unpack("<QQ", self.auxv[: len(self.auxv) // 16 * 16]):
            if kind == AT_PHDR and (file := self.file_at(value)):
                return file.path
        return ""

    def trust(self, path: str, elf: Elf) -> None:
        """Take pages that were not dumped from this file."""
        self._trusted += [(part, elf) for part in self.files if part.path == path]

    def read(self, address: int, size: int) -> bytes:
        """Memory, as ``qtrace.target.memory.Memory``."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self.parts[index].end:
            part = self.parts[index]
            at = address - part.start
            if at < part.dumped:
                raw = self._data[part.offset + at : part.offset + min(at + size, part.dumped)]
                rest = size - len(raw)
                # Neighbours are segments of their own.
                return raw + self.read(address + len(raw), rest) if rest and raw else raw
        for file, elf in self._trusted:
            if file.start <= address < file.end:
                at = file.offset + address - file.start
                return elf.data[at : at + min(size, file.end - address)]
        return b""


def build_id_in(core: CoreFile, base: int) -> str:
    """The build id of a file mapped at an address, as its header there has it; empty without."""
    header = core.read(base, 64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return ""
    (table,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    segments = []
    for number in range(count):
        raw = core.read(base + table + number * size, 56)
        if len(raw) == 56:
            segments.append(struct.unpack("<IIQQQQQQ", raw))
    first = min((s[3] for s in segments if s[0] == PT_LOAD), default=0) & -PAGE
    for kind, _flags, _offset, vaddr, _physical, length, *_rest in segments:
        if kind == PT_NOTE and length < PAGE:
            for note, description in read_notes(core.read(base + vaddr - first, length), b"GNU"):
                if note == NT_GNU_BUILD_ID:
                    return description.hex()
    return ""


def read_notes(raw: bytes, owner: bytes = b"CORE") -> list[tuple[int, bytes]]:
    """(type, description) of an owner's notes."""
    found, at = [], 0
    while at + 12 <= len(raw):
        name_size, size, kind = struct.unpack_from("<III", raw, at)
        name = raw[at + 12 : at + 12 + name_size].rstrip(b"\0")
        begin = at + 12 + (name_size + 3 & -4)
        if name == owner:
            found.append((kind, raw[begin : begin + size]))
        at = begin + (size + 3 & -4)
    return found


def no_core(path: Path, why: str) -> TargetError:
    """The error for a file that is none."""
    return TargetError(
        f"{path} is not a core file of a QEMU: {why}", "write one with gcore, or the kernel's"
    )
