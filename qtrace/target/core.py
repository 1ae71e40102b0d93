"""A core file of QEMU, gcore's or the kernel's, as the source of looks."""

from __future__ import annotations

import bisect
import mmap
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qtrace.errors import QtraceError, TargetError, UnsupportedBinary
from qtrace.target.aio.coroutine import guard_of_auxv
from qtrace.target.arch_x86_64 import DWARF_NUMBERS, PAGE, PRSTATUS_REGISTERS, SYSCALL_INSTRUCTION
from qtrace.target.elf import Elf
from qtrace.target.maps import Module
from qtrace.target.source import State
from qtrace.target.syscalls import syscall_name

ET_CORE, EM_X86_64, PT_LOAD, PT_NOTE = 4, 62, 1, 4
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
NT_GNU_BUILD_ID = 3
AT_PHDR = 3
# struct elf_prstatus: pid, then the registers of user_regs_struct; struct elf_prpsinfo: pid.
PRSTATUS_PID, PRSTATUS_REGS, PRPSINFO_PID = 32, 112, 24
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
    build id has been found to be the one in the core (``trust``).

    Raises:
        TargetError: not a (whole) core file, or not readable.
        UnsupportedBinary: the core of another kind of machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < 64:
                    raise _no_core(path, "it is too short")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TargetError(
                f"cannot read {path}: {reason}", "name a readable core file, as gcore writes it"
            ) from error
        self._read_headers()
        self._starts = [part.start for part in self.parts]
        self._trusted: list[tuple[FilePart, Elf]] = []

    def _read_headers(self) -> None:
        data = self._data
        if data[:4] != b"\x7fELF":
            for magic, command in PACKED.items():
                if data[: len(magic)] == magic:
                    raise TargetError(f"{self.path} is compressed", f"unpack it first: {command}")
            raise _no_core(self.path, "it is no ELF file")
        kind, machine = struct.unpack_from("<HH", data, 16)
        if data[4] != 2 or machine != EM_X86_64:
            raise UnsupportedBinary(
                f"{self.path} is the core of another machine than x86-64",
                "run qtrace on a core of an x86-64 QEMU",
            )
        if kind != ET_CORE:
            raise _no_core(self.path, "it is a program or a library")
        (headers,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        if count == 0xFFFF:
            # More than 65,534 segments: the number stands in the first section header.
            (sections,) = struct.unpack_from("<Q", data, 40)
            (count,) = struct.unpack_from("<I", data[sections : sections + 64].ljust(64), 44)
        parts, notes = [], []
        for number in range(count):
            raw = data[headers + number * size : headers + number * size + 56]
            if len(raw) < 56:
                raise self._truncated()
            segment, _flags, offset, start, _physical, dumped, length, _align = struct.unpack(
                "<IIQQQQQQ", raw
            )
            if offset + dumped > len(data):
                raise self._truncated()
            if segment == PT_LOAD:
                parts.append(Part(start, start + length, offset, dumped))
            elif segment == PT_NOTE:
                notes += _notes(data[offset : offset + dumped])
        self.parts = sorted(parts, key=lambda part: part.start)
        self._notes = notes

    def _truncated(self) -> TargetError:
        return TargetError(
            f"{self.path} is truncated: its end was not written ({len(self._data)} bytes are here)",
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
            (tid,) = struct.unpack_from("<i", raw, PRSTATUS_PID)
            found[tid] = struct.unpack_from("<27Q", raw, PRSTATUS_REGS)
        return found

    @cached_property
    def pid(self) -> int:
        """The process id, which is the main thread's tid; 0 when the core does not tell."""
        raw = b"".join(self.notes(NT_PRPSINFO)[:1])
        return int(struct.unpack_from("<i", raw, PRPSINFO_PID)[0]) if len(raw) > 28 else 0

    @cached_property
    def auxv(self) -> bytes:
        return b"".join(self.notes(NT_AUXV)[:1])

    @cached_property
    def files(self) -> list[FilePart]:
        """What NT_FILE lists, by address."""
        found = []
        for raw in self.notes(NT_FILE):
            count, page = struct.unpack_from("<QQ", raw, 0)
            names = raw[16 + 24 * count :].split(b"\0")
            for number in range(count):
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


class CoreSource:
    """A core and its executable, checked against each other.

    Args:
        exe: the executable, None for the one at the path where it ran.

    Raises:
        TargetError: it is not the executable that the core is of, or not found.
    """

    def __init__(self, core: CoreFile, exe: Path | None = None) -> None:
        self.memory = core
        self._core = core
        self.space = CoreSpace(core)
        ran = core.program_path()
        if not core.registers or not ran:
            raise _no_core(core.path, "it has no registers or no list of mapped files")
        path = exe or Path(ran)
        if not path.exists():
            raise TargetError(
                f"the executable {path} is not here", "name the one that crashed with --exe"
            )
        elf = Elf(path, Path(ran).name)
        in_core = self.space.build_id(ran)
        if in_core and elf.build_id and in_core != elf.build_id:
            raise TargetError(
                f"{core.path} is not a core of {path}: build id {in_core[:16]}... there, "
                f"{elf.build_id[:16]}... here",
                "name the executable that wrote the core with --exe",
            )
        self.checked = bool(in_core and elf.build_id)
        module = self.space.add(ran, elf)
        if module is None:
            raise _no_core(core.path, f"{ran} is not mapped in it")
        self.binary = module
        self.program = Path(ran).name

    @property
    def pid(self) -> int:
        return self._core.pid or next(iter(self._core.registers))

    def threads(self) -> dict[int, str]:
        """The threads; a core does not have their names."""
        return dict.fromkeys(sorted(self._core.registers), "")

    def state(self, tid: int) -> State:
        """A thread's registers, and the system call they show it in."""
        values = dict(zip(PRSTATUS_REGISTERS, self._core.registers[tid], strict=True))
        known = {number: values[name] for name, number in DWARF_NUMBERS.items()}
        if not values["rip"]:
            # A kernel thread that bears the process's id (KVM's, vhost's).
            return State("", None)
        call = values["orig_rax"]
        in_call = call < 1 << 63 and self.memory.read(values["rip"] - 2, 2) == SYSCALL_INSTRUCTION
        return State(syscall_name(call, values["rsi"]) if in_call else "", known)

    def stopped(self) -> bool:
        """A core shows a moment of a process that ran."""
        return False

    def thread_pointers(self) -> dict[int, int]:
        index = PRSTATUS_REGISTERS.index("fs_base")
        return {tid: registers[index] for tid, registers in self._core.registers.items()}

    def pointer_guard(self) -> int | None:
        return guard_of_auxv(self.memory, self._core.auxv)

    def outer_tid(self, tid: int) -> int:
        return tid


class CoreSpace:
    """The files that were mapped, opened when an address leads there.

    Attributes:
        unmatched: files that are here, but are others than those that were mapped.
    """

    def __init__(self, core: CoreFile) -> None:
        self._core = core
        self._modules: dict[str, Module | None] = {}
        self.unmatched: set[str] = set()

    def refresh(self) -> None:
        """A core does not change."""

    def find(self, address: int) -> tuple[Module | None, str] | None:
        """As ``Space.find``."""
        file = self._core.file_at(address)
        if file is None:
            # Anonymous, as translated code.
            index = bisect.bisect_right(self._core._starts, address) - 1
            part = self._core.parts[index] if index >= 0 else None
            return (None, "") if part and part.start <= address < part.end else None
        if file.path not in self._modules:
            self._open(file.path)
        return self._modules[file.path], Path(file.path).name

    def _open(self, path: str) -> None:
        self._modules[path] = None
        try:
            elf = Elf(path)
        except QtraceError:
            return
        if self.build_id(path) not in ("", elf.build_id):
            self.unmatched.add(path)
            return
        self.add(path, elf)

    def add(self, path: str, elf: Elf) -> Module | None:
        """Take a file as the one that was mapped; None when it is not mapped."""
        for file in self._core.files:
            vaddr = elf.vaddr_of(file.offset) if file.path == path else None
            if vaddr is not None:
                self._core.trust(path, elf)
                self._modules[path] = Module(elf, file.start - vaddr)
                return self._modules[path]
        return None

    def build_id(self, path: str) -> str:
        """The build id of a mapped file as its header in the core has it; empty without one."""
        file = self._core.first_of(path)
        return _build_id_in(self._core, file.start) if file else ""


def _build_id_in(core: CoreFile, base: int) -> str:
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
            for note, description in _notes(core.read(base + vaddr - first, length), b"GNU"):
                if note == NT_GNU_BUILD_ID:
                    return description.hex()
    return ""


def _notes(raw: bytes, owner: bytes = b"CORE") -> list[tuple[int, bytes]]:
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


def _no_core(path: Path, why: str) -> TargetError:
    return TargetError(
        f"{path} is not a core file of a QEMU: {why}", "write one with gcore, or the kernel's"
    )
