"""The format of core files, gcore's and the kernel's: notes, registers, memory.

pyelftools parses headers and notes; it has no struct elf_prstatus and no siginfo_t.
"""

from __future__ import annotations

import bisect
import io
import mmap
import os
import signal
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from elftools.elf.elffile import ELFFile
from elftools.elf.notes import iter_notes

from qtrace.binary.elf import Elf
from qtrace.errors import QtraceError, TargetError, UnsupportedBinary
from qtrace.machine.abort_message import FATAL, SENT
from qtrace.machine.architecture import Architecture
from qtrace.machine.architectures import ARCHITECTURES
from qtrace.qemu.aio.model import Ending

PF_W = 2
NT_ARM_TLS = 0x401
AT_PHDR = 3
# struct elf_prstatus: pid, then the registers (``Architecture.prstatus``).
PRSTATUS_SIGNAL, PRSTATUS_PID, PRSTATUS_REGS = 12, 32, 112
# Of a program header.
ENTRY_SIZE = 56
# siginfo_t: si_signo, si_errno, si_code; then, of a signal that somebody sent, si_pid.
SIGINFO = struct.Struct("<iii4xi")
PACKED = {b"\x28\xb5\x2f\xfd": "zstd -d", b"\x04\x22\x4d\x18": "lz4 -d",
          b"\xfd7zX": "xz -d", b"\x1f\x8b": "gzip -d"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A PT_LOAD of the core: run-time addresses, what of it was dumped, and whether the program
    may have written there."""

    start: int
    end: int
    offset: int
    dumped: int
    writable: bool = True


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
        architecture: the processor of the process.

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
        except QtraceError:
            raise
        except Exception as error:
            # pyelftools raises whatever damage leads to.
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
        # pyelftools only reads and seeks, which an mmap does as well as a file.
        elf = ELFFile(cast(IO[bytes], data))
        if elf.elfclass != 64 or not elf.little_endian or elf["e_machine"] not in ARCHITECTURES:
            known = [one.name for one in ARCHITECTURES.values()]
            raise UnsupportedBinary(
                f"{self.path} is the core of another machine than {' or '.join(known)}",
                f"name a core of a QEMU on one of these: {', '.join(known)}",
            )
        self.architecture: Architecture = ARCHITECTURES[elf["e_machine"]]
        if elf["e_type"] != "ET_CORE":
            raise no_core(self.path, "it is a program or a library")
        if elf["e_phentsize"] != ENTRY_SIZE:
            raise no_core(self.path, "its headers are damaged")
        if elf["e_phoff"] + elf.num_segments() * ENTRY_SIZE > len(data):
            raise self._truncated()
        self.parts: list[Part] = []
        self._notes: list[Any] = []
        self.size = 0
        for segment in elf.iter_segments():
            start, offset, dumped = (segment[f] for f in ("p_vaddr", "p_offset", "p_filesz"))
            self.size = max(self.size, offset + dumped)
            if segment["p_type"] == "PT_LOAD":
                writable = bool(segment["p_flags"] & PF_W)
                self.parts.append(Part(start, start + segment["p_memsz"], offset, dumped, writable))
            elif segment["p_type"] == "PT_NOTE":
                if offset + dumped > len(data):
                    raise self._truncated()
                self._notes += _core_notes(elf, data[offset : offset + dumped])
        self.parts.sort(key=lambda part: part.start)

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

    def notes(self, kind: str) -> list[bytes]:
        """The notes of one kind (NT_*)."""
        return [note["n_descdata"] for note in self._notes if note["n_type"] == kind]

    @cached_property
    def registers(self) -> dict[int, tuple[int, ...]]:
        """Registers by tid, in the order of ``Architecture.prstatus``."""
        found = {}
        layout = struct.Struct(f"<{len(self.architecture.prstatus)}Q")
        for raw in self.notes("NT_PRSTATUS"):
            if len(raw) < PRSTATUS_REGS + layout.size:
                continue
            (tid,) = struct.unpack_from("<i", raw, PRSTATUS_PID)
            found[tid] = layout.unpack_from(raw, PRSTATUS_REGS)
        return found

    @cached_property
    def thread_pointers(self) -> dict[int, int]:
        """By tid, as far as the core tells them."""
        kept = self.architecture.kept_thread_pointer
        if kept:
            index = self.architecture.prstatus.index(kept)
            return {tid: values[index] for tid, values in self.registers.items()}
        found: dict[int, int] = {}
        tid = 0
        # A thread's other notes follow its NT_PRSTATUS.
        for note in self._notes:
            raw = note["n_descdata"]
            if note["n_type"] == "NT_PRSTATUS" and len(raw) >= PRSTATUS_REGS:
                (tid,) = struct.unpack_from("<i", raw, PRSTATUS_PID)
            elif note["n_type"] == NT_ARM_TLS and len(raw) >= 8:
                (found[tid],) = struct.unpack_from("<Q", raw)
        return found

    @cached_property
    def pid(self) -> int:
        """The process id, which is the main thread's tid; 0 when the core does not tell."""
        (info, *_others) = [*self._parsed("NT_PRPSINFO"), None]
        return int(info["pr_pid"]) if info else 0

    def _parsed(self, kind: str) -> list[Any]:
        """As pyelftools has them."""
        return [note["n_desc"] for note in self._notes if note["n_type"] == kind]

    def ending(self, message: str = "") -> Ending | None:
        """The signal that the kernel wrote it for; None of a process that was only copied.

        Args:
            message: what abort() was told.
        """
        first = next(iter(self.notes("NT_PRSTATUS")), b"")
        about = next(iter(self.notes("NT_SIGINFO")), b"")
        if len(first) < PRSTATUS_REGS or len(about) < SIGINFO.size:
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
        return b"".join(self.notes("NT_AUXV")[:1])

    @cached_property
    def files(self) -> list[FilePart]:
        """What NT_FILE lists, by address."""
        found = [
            FilePart(
                entry["vm_start"],
                entry["vm_end"],
                entry["page_offset"] * table["page_size"],
                name.decode("utf-8", "surrogateescape"),
            )
            for table in self._parsed("NT_FILE")
            for entry, name in zip(table["Elf_Nt_File_Entry"], table["filename"], strict=True)
        ]
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
        """Memory, as ``qtrace.machine.memory.Memory``."""
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


def _core_notes(elf: ELFFile, segment: bytes) -> Iterator[Any]:
    """The notes that every system's cores have, and Linux's own. They are parsed in a copy: a
    damaged length must not lead through all of the core."""
    view = SimpleNamespace(structs=elf.structs, elfclass=64, stream=io.BytesIO(segment))
    return (
        note
        for note in iter_notes(cast(ELFFile, view), 0, len(segment))
        if note["n_name"] in ("CORE", "LINUX")
    )


def no_core(path: Path, why: str) -> TargetError:
    """The error for a file that is none."""
    return TargetError(
        f"{path} is not a core file of a QEMU: {why}", "write one with gcore, or the kernel's"
    )
