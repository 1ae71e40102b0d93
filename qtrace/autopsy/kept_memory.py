"""The memory that looks have read, as a core file: what findings rest on, and no guest RAM.

QEMU marks each block of guest RAM, video memory and firmware too, with MADV_DONTFORK
(qemu_ram_alloc() in system/physmem.c, exec.c before 2020); its own memory it never does. A core is
made here by hand, as no library writes one: notes, and a segment for each run of pages.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qtrace.machine.memory import PAGE, Memory

# Of each thread's stack so much is taken from its stack pointer on.
STACK = 16 << 10
MOST_PAGES = 4096
HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
NHDR = struct.Struct("<III")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
ET_CORE, EM_X86_64, EV_CURRENT = 4, 62, 1
PT_LOAD, PT_NOTE, READABLE = 1, 4, 4
NT_PRSTATUS, NT_AUXV, NT_FILE = 1, 6, 0x46494C45
# struct elf_prstatus of x86-64: the pid at 32, rip and rsp among the registers from 112 on.
PRSTATUS, PR_PID, PR_RIP, PR_RSP = 336, 32, 112 + 16 * 8, 112 + 19 * 8


class NotedMemory:
    """A ``Memory`` that keeps in mind which pages were asked for and are there."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.pages: set[int] = set()

    def read(self, address: int, size: int) -> bytes:
        data = self._memory.read(address, size)
        if data:
            self.pages.update(range(address // PAGE, (address + len(data) - 1) // PAGE + 1))
        return data


@dataclass(frozen=True)
class Asleep:
    """A thread that sleeps: where its user code left off."""

    tid: int
    pc: int
    stack_pointer: int


def guest_memory(smaps: str) -> list[tuple[int, int]] | None:
    """Where a process has guest RAM, by /proc/PID/smaps; None where that does not tell."""
    found, flags = [], False
    pieces = HEADER.split(smaps)[1:]
    for start, end, rest in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        match = re.search(r"^VmFlags: (.*)$", rest, re.MULTILINE)
        flags = flags or match is not None
        if match is not None and "dc" in match[1].split():
            found.append((int(start, 16), int(end, 16)))
    return found if flags else None


def core(
    memory: Memory,
    pages: Iterable[int],
    asleep: Iterable[Asleep],
    guest: list[tuple[int, int]],
    auxv: bytes,
    files: bytes,
) -> tuple[bytes, int]:
    """A core file, and how many pages were left out of it: too many, or guest RAM.

    Args:
        pages: by number.
        guest: as ``guest_memory`` has it.
        auxv: of /proc/PID/auxv.
        files: the descriptor of NT_FILE, see ``mapped_files``.
    """
    threads = list(asleep)
    wanted = set(pages)
    for thread in threads:
        first = thread.stack_pointer // PAGE
        wanted.update(range(first, first + STACK // PAGE))
    starts = [start for start, _end in guest]

    def is_guest(page: int) -> bool:
        at = bisect.bisect_right(starts, page * PAGE) - 1
        return at >= 0 and page * PAGE < guest[at][1]

    own = sorted(page for page in wanted if not is_guest(page))
    taken = [(page, data) for page in own[:MOST_PAGES] if (data := memory.read(page * PAGE, PAGE))]
    runs: list[tuple[int, list[bytes]]] = []
    for page, data in taken:
        if runs and runs[-1][0] + len(runs[-1][1]) == page:
            runs[-1][1].append(data)
        else:
            runs.append((page, [data]))
    notes = b"".join(_status(thread) for thread in threads)
    notes += _note(NT_AUXV, auxv) + _note(NT_FILE, files)
    count = 1 + len(runs)
    offset = EHDR.size + count * PHDR.size
    headers = [PHDR.pack(PT_NOTE, READABLE, offset, 0, 0, len(notes), len(notes), 4)]
    body, at = [notes], offset + len(notes)
    padding = -at % PAGE
    body.append(bytes(padding))
    at += padding
    for page, data_of_it in runs:
        data = b"".join(data_of_it)
        address = page * PAGE
        headers.append(PHDR.pack(PT_LOAD, READABLE, at, address, 0, len(data), len(data), PAGE))
        body.append(data)
        at += len(data)
    header = EHDR.pack(
        IDENT, ET_CORE, EM_X86_64, EV_CURRENT, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, count,
        0, 0, 0,
    )  # fmt: skip
    return header + b"".join(headers) + b"".join(body), len(wanted) - len(taken)


def mapped_files(maps: str) -> bytes:
    """The descriptor of NT_FILE: which file is mapped where."""
    rows, names = [], []
    for line in maps.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[5].startswith("/"):
            continue
        start, end = (int(part, 16) for part in fields[0].split("-"))
        rows.append(struct.pack("<3Q", start, end, int(fields[2], 16) // PAGE))
        names.append(fields[5].encode("utf-8", "surrogateescape") + b"\0")
    return struct.pack("<2Q", len(rows), PAGE) + b"".join(rows) + b"".join(names)


def first_pages(maps: str) -> set[int]:
    """The first page of each mapped program and library: it has the build id."""
    rows = [line.split(None, 5) for line in maps.splitlines()]
    files = [row for row in rows if len(row) == 6 and row[5].startswith("/")]
    code = {row[5] for row in files if "x" in row[1]}
    return {
        int(row[0].split("-")[0], 16) // PAGE
        for row in files
        if row[5] in code and not int(row[2], 16)
    }


def read_text(path: str) -> str:
    """A file of /proc; empty where it cannot be read."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def _status(thread: Asleep) -> bytes:
    data = bytearray(PRSTATUS)
    struct.pack_into("<i", data, PR_PID, thread.tid)
    struct.pack_into("<Q", data, PR_RIP, thread.pc)
    struct.pack_into("<Q", data, PR_RSP, thread.stack_pointer)
    return _note(NT_PRSTATUS, bytes(data))


def _note(kind: int, data: bytes) -> bytes:
    name = b"CORE\0\0\0\0"
    return NHDR.pack(5, len(data), kind) + name + data + bytes(-len(data) % 4)
