"""Which memory of a process a core of it needs: what looks have read, and no guest RAM.

QEMU marks each block of guest RAM, video memory and firmware too, with MADV_DONTFORK
(qemu_ram_alloc() in system/physmem.c, exec.c before 2020); its own memory it never does.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from qtrace.machine.memory import PAGE, Memory, read_word
from qtrace.process.maps import Mapping

# Of each thread's stack so much is taken from its stack pointer on.
STACK = 16 << 10
MOST_PAGES = 8192
HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)
# /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): a page that is there, one that is
# swapped out, and one that still is the file's (or shared).
PRESENT, SWAPPED, FILE_PAGE = 1 << 63, 1 << 62, 1 << 61
# linux/auxvec.h, elf.h; struct r_debug and struct link_map of link.h, in words.
AT_PHDR, AT_PHNUM = 3, 5
PT_DYNAMIC, PT_PHDR = 2, 6
DT_DEBUG = 21
MAP_OF_DEBUG, NEXT_OF_MAP, NAME_OF_MAP = 8, 24, 8
PROGRAM_HEADER = 56
MOST_LIBRARIES, MOST_TAGS, LONGEST_NAME = 1024, 128, 4096


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


def taken(
    memory: Memory, pages: Iterable[int], guest: Sequence[tuple[int, int]]
) -> tuple[dict[int, bytes], list[str]]:
    """The contents of pages, by number, and what was left out, in words."""
    starts = [start for start, _end in guest]

    def is_guest(page: int) -> bool:
        at = bisect.bisect_right(starts, page * PAGE) - 1
        return at >= 0 and page * PAGE < guest[at][1]

    wanted = sorted(pages)
    own = [page for page in wanted if not is_guest(page)]
    read = ((page, memory.read(page * PAGE, PAGE)) for page in own[:MOST_PAGES])
    found = {page: data for page, data in read if len(data) == PAGE}
    counts = {
        "of guest RAM": len(wanted) - len(own),
        f"beyond the first {MOST_PAGES:,}": len(own[MOST_PAGES:]),
        "not there any more": len(own[:MOST_PAGES]) - len(found),
    }
    return found, [f"pages {which}: {count:,}" for which, count in counts.items() if count]


def stack_pages(stack_pointer: int) -> range:
    """Of a thread's stack."""
    first = stack_pointer // PAGE
    return range(first, first + STACK // PAGE)


def first_pages(mappings: Sequence[Mapping]) -> set[int]:
    """The first page of each mapped program and library, which has the build id, and the kernel's
    own code there ([vdso]), which no file has."""
    code = {one.path for one in mappings if one.executable}
    pages = {
        one.start // PAGE
        for one in mappings
        if one.path in code and one.path.startswith("/") and not one.offset
    }
    for one in mappings:
        if one.path == "[vdso]":
            pages.update(range(one.start // PAGE, one.end // PAGE))
    return pages


def written_pages(pid: int, mappings: Iterable[Mapping]) -> set[int]:
    """The pages of privately mapped files that are the file's no more: variables, and tables that
    the linker has filled. Whoever has the core and the file would take the file's for them."""
    found = set()
    with suppress(OSError), Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for one in mappings:
            if not (one.inode and "p" in one.perms):
                continue
            first, count = one.start // PAGE, (one.end - one.start) // PAGE
            pagemap.seek(8 * first)
            words = struct.iter_unpack("<Q", pagemap.read(8 * count))
            for page, (word,) in enumerate(words, first):
                if word & SWAPPED or (word & PRESENT and not word & FILE_PAGE):
                    found.add(page)
    return found


def read_libraries(memory: Memory, auxv: bytes) -> None:
    """Read the dynamic linker's list of libraries, which debuggers go through: whoever notes what
    is read has it then."""
    known = dict(_pairs(auxv))
    table = known.get(AT_PHDR, 0)
    headers = memory.read(table, PROGRAM_HEADER * min(known.get(AT_PHNUM, 0), MOST_TAGS))
    found = struct.iter_unpack(
        "<IIQQQQQQ", headers[: len(headers) // PROGRAM_HEADER * PROGRAM_HEADER]
    )
    addresses = {kind: vaddr for kind, _flags, _offset, vaddr, *_rest in found}
    if not {PT_DYNAMIC, PT_PHDR} <= addresses.keys():
        return
    dynamic = addresses[PT_DYNAMIC] + table - addresses[PT_PHDR]
    debug = dict(_pairs(memory.read(dynamic, 16 * MOST_TAGS))).get(DT_DEBUG, 0)
    one = read_word(memory, debug + MAP_OF_DEBUG) if debug else None
    for _ in range(MOST_LIBRARIES):
        if not one:
            return
        memory.read(read_word(memory, one + NAME_OF_MAP) or 0, LONGEST_NAME)
        one = read_word(memory, one + NEXT_OF_MAP)


def _pairs(raw: bytes) -> Iterator[tuple[int, int]]:
    """Keys and values, up to the key 0."""
    for key, value in struct.iter_unpack("<QQ", raw[: len(raw) // 16 * 16]):
        if not key:
            return
        yield key, value


def read_text(path: str) -> str:
    """A file of /proc; empty where it cannot be read."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""
