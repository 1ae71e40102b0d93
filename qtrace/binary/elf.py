"""One ELF file, read lazily: segments, build id, code, and where its unwind table lies.

pyelftools parses the headers. What depends on the processor stands in ``Elf.architecture``.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from elftools.common.utils import parse_cstring_from_stream, struct_parse
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from qtrace.errors import TargetError, UnsupportedBinary
from qtrace.host.digest import blake2b
from qtrace.machine.architecture import Architecture
from qtrace.machine.architectures import ARCHITECTURES

PF_X = 1
# Bytes of a build id: SHA-1 makes 20, ld's --build-id=0x... whatever it is given.
MAX_BUILD_ID = 64


T = TypeVar("T")


def absent_when_damaged(read: Callable[[Elf], T | None]) -> Callable[[Elf], T | None]:
    """What cannot be parsed is not there: pyelftools raises whatever damage leads to."""

    @wraps(read)
    def tolerant(elf: Elf) -> T | None:
        with elf.lock:
            try:
                return read(elf)
            except Exception:
                return None

    return tolerant


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment: link-time address, file offset, size in the file, flags (PF_*)."""

    vaddr: int
    offset: int
    filesz: int
    flags: int

    @property
    def executable(self) -> bool:
        return bool(self.flags & PF_X)


class Elf:
    """An ELF file of a running process or on disk.

    ``path`` is what is opened: /proc/PID/exe and /proc/PID/map_files/* reach deleted files
    and other mount namespaces. ``name`` is what people call it.

    Attributes:
        architecture: the processor that it is for.
        lock: whoever parses ``data`` by seeking in it holds it.

    Raises:
        TargetError: the file cannot be read.
        UnsupportedBinary: no ELF file, or not a 64-bit one of ``ARCHITECTURES``.
    """

    def __init__(self, path: Path | str, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.name
        self.lock = threading.RLock()
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise UnsupportedBinary(f"{self.name} is empty", "name a QEMU executable")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TargetError(
                f"cannot read {self.path}: {reason}", "run as root, or name a readable file"
            ) from error
        try:
            # pyelftools only reads and seeks, which an mmap does as well as a file.
            self._elf = ELFFile(cast(IO[bytes], self._data))
            machine, bits = self._elf["e_machine"], self._elf.elfclass
            self.segments = tuple(
                Segment(s["p_vaddr"], s["p_offset"], s["p_filesz"], s["p_flags"])
                for s in self._program_headers("PT_LOAD")
            )
        except Exception as error:
            # pyelftools raises whatever a damaged header leads to.
            raise UnsupportedBinary(
                f"{self.name} is not an ELF executable ({error})", "name a QEMU executable"
            ) from error
        if bits != 64 or not self._elf.little_endian or machine not in ARCHITECTURES:
            raise UnsupportedBinary(
                f"{self.name} is a {bits}-bit {machine} binary, which qtrace does not read",
                f"name a QEMU for {' or '.join(a.name for a in ARCHITECTURES.values())} hosts",
            )
        self.architecture: Architecture = ARCHITECTURES[machine]

    # The headers alone: pyelftools' objects for segments and sections read what they are about,
    # too, a hash table of all symbols among it, which took a third of a look.

    def _program_headers(self, kind: str) -> list[Any]:
        elf = self._elf
        begin, size = elf["e_phoff"], elf["e_phentsize"]
        headers = (
            struct_parse(elf.structs.Elf_Phdr, elf.stream, begin + n * size)
            for n in range(elf.num_segments())
        )
        return [header for header in headers if header["p_type"] == kind]

    @cached_property
    def _section_headers(self) -> dict[str, Any]:
        elf = self._elf
        begin, size = elf["e_shoff"], elf["e_shentsize"]
        headers = [
            struct_parse(elf.structs.Elf_Shdr, elf.stream, begin + n * size)
            for n in range(elf.num_sections())
        ]
        names = headers[elf.get_shstrndx()]["sh_offset"] if headers else 0
        return {
            (
                parse_cstring_from_stream(elf.stream, names + header["sh_name"]) or b""
            ).decode(): header
            for header in headers
        }

    def read(self, vaddr: int, size: int) -> bytes:
        """Up to ``size`` bytes of the file at a link-time address; shorter at a segment's end."""
        for segment in self.segments:
            if 0 <= vaddr - segment.vaddr < segment.filesz:
                start = segment.offset + vaddr - segment.vaddr
                end = min(start + size, segment.offset + segment.filesz)
                return self._data[start:end]
        return b""

    def offset_of(self, vaddr: int) -> int | None:
        """The file offset of a link-time address."""
        for segment in self.segments:
            if 0 <= vaddr - segment.vaddr < segment.filesz:
                return segment.offset + vaddr - segment.vaddr
        return None

    def vaddr_of(self, offset: int) -> int | None:
        """The link-time address of a file offset."""
        for segment in self.segments:
            if 0 <= offset - segment.offset < segment.filesz:
                return segment.vaddr + offset - segment.offset
        return None

    @property
    def data(self) -> mmap.mmap:
        return self._data

    @property
    def code(self) -> list[Segment]:
        return [s for s in self.segments if s.executable]

    def code_bytes(self) -> list[tuple[int, memoryview]]:
        """Link-time start and bytes of each executable segment, which are not copied."""
        view = memoryview(self._data)
        return [(s.vaddr, view[s.offset : s.offset + s.filesz]) for s in self.code]

    def is_code(self, vaddr: int) -> bool:
        return any(0 <= vaddr - s.vaddr < s.filesz for s in self.code)

    def is_settled(self, vaddr: int) -> bool:
        """Whether nothing is written there once the dynamic linker is done."""
        return any(0 <= vaddr - begin < size for begin, size in self._relro or ())

    @cached_property
    @absent_when_damaged
    def _relro(self) -> list[tuple[int, int]]:
        headers = self._program_headers("PT_GNU_RELRO")
        return [(header["p_vaddr"], header["p_memsz"]) for header in headers]

    def c_string(self, vaddr: int, limit: int = 256) -> str | None:
        """The C string at a link-time address, None when there is no printable one."""
        raw = self.read(vaddr, limit).split(b"\0", 1)
        if len(raw) != 2 or not raw[0]:
            return None
        text = raw[0].decode("ascii", "replace")
        return text if text.isprintable() and text.isascii() else None

    @cached_property
    def build_id(self) -> str:
        """The GNU build id in hex, empty when the file has none."""
        return self._build_id() or ""

    @absent_when_damaged
    def _build_id(self) -> str | None:
        for header in self._program_headers("PT_NOTE"):
            for note in NoteSegment(header, self._elf.stream, self._elf).iter_notes():
                # A damaged note may claim half the file; it becomes part of file names.
                if note["n_type"] == "NT_GNU_BUILD_ID" and note["n_descsz"] <= MAX_BUILD_ID:
                    return str(note["n_desc"])
        return None

    @cached_property
    def code_hash(self) -> str:
        """A hash of the executable segments: a binary can claim any build id."""
        digest = blake2b(digest_size=16)
        for _start, code in self.code_bytes():
            digest.update(code)
        return digest.hexdigest()

    @cached_property
    @absent_when_damaged
    def eh_frame_hdr(self) -> int | None:
        """Link-time address of .eh_frame_hdr, None when the file has none."""
        for header in self._program_headers("PT_GNU_EH_FRAME"):
            return int(header["p_vaddr"])
        return None

    def section(self, name: str) -> bytes | None:
        """A section's bytes, None when there is none (stripped section headers included)."""
        with self.lock:
            try:
                section = self._section_headers.get(name)
            except Exception:
                # Damaged section headers, see absent_when_damaged().
                return None
        if section is None or section["sh_type"] == "SHT_NOBITS":
            return None
        return self._data[section["sh_offset"] : section["sh_offset"] + section["sh_size"]]

    @absent_when_damaged
    def dynamic_symbols(self) -> tuple[bytes, bytes] | None:
        """.dynsym and .dynstr by PT_DYNAMIC, for files without section headers."""
        for header in self._program_headers("PT_DYNAMIC"):
            segment = DynamicSegment(header, self._elf.stream, self._elf)
            tags = {tag.entry.d_tag: tag.entry.d_val for tag in segment.iter_tags()}
            if "DT_SYMTAB" not in tags or "DT_STRTAB" not in tags:
                return None
            count = segment.num_symbols()
            return (
                self.read(tags["DT_SYMTAB"], 24 * count),
                self.read(tags["DT_STRTAB"], tags.get("DT_STRSZ", 0)),
            )
        return None
