"""Each thread's thread pointer (fs_base) without stopping it, from glibc's struct pthread.

The structure points to itself twice (tcbhead_t.tcb and .self) and holds the thread's id; all
threads but the first stand in one list, so that one of them leads to the others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from qtrace.target.memory import Memory, read_word

SELF = 0x10
# struct pthread: `list` then `tid`, right after tcbhead_t (0x2c0 bytes since glibc 2.2x).
TID_FROM, TID_TO = 0x2C0, 0x310
ALIGNMENT = 64
MAX_THREADS = 4096
CHUNK = 1 << 20


def find_thread_pointers(
    memory: Memory, tids: Iterable[int], areas: Iterable[tuple[int, int]]
) -> dict[int, int]:
    """fs_base by tid, as far as found.

    Args:
        tids: the thread ids, as the process itself knows them.
        areas: (start, end) of writable memory to search, the likeliest first. It is read
            only until every thread is found.
    """
    wanted = set(tids)
    found: dict[int, int] = {}
    for start, end in areas:
        if wanted <= found.keys():
            break
        for pointer, offset in _candidates(memory, start, end, wanted):
            for other in _list_of(memory, pointer, offset):
                tid = _tid_at(memory, other, offset)
                if tid in wanted and is_thread_pointer(memory, other, tid):
                    found.setdefault(tid, other)
            if wanted <= found.keys():
                break
    return found


def is_thread_pointer(memory: Memory, pointer: int, tid: int) -> bool:
    """Whether a struct pthread of this thread lies there (still)."""
    raw = memory.read(pointer, TID_TO)
    if not _points_to_itself(raw, pointer):
        return False
    # A look asks this of every thread: bytes.find() is quicker than word by word.
    wanted = struct.pack("<I", tid)
    at = raw.find(wanted, TID_FROM)
    while at % 4 and at > 0:
        at = raw.find(wanted, at + 1)
    return at > 0


def _candidates(memory: Memory, start: int, end: int, tids: set[int]) -> Iterable[tuple[int, int]]:
    """Every struct pthread between two addresses, with the offset of its tid."""
    start = -(-start // ALIGNMENT) * ALIGNMENT
    for base in range(start, end, CHUNK):
        raw = memory.read(base, min(CHUNK, end - base))
        for offset in range(0, len(raw) - SELF - 7, ALIGNMENT):
            pointer = base + offset
            if int.from_bytes(raw[offset : offset + 8], "little") != pointer:
                continue
            at = _tid_offset(memory.read(pointer, TID_TO), pointer, tids)
            if at is not None:
                yield pointer, at


def _points_to_itself(raw: bytes, pointer: int) -> bool:
    return (
        len(raw) == TID_TO
        and struct.unpack_from("<Q", raw, 0)[0] == pointer
        and struct.unpack_from("<Q", raw, SELF)[0] == pointer
    )


def _tid_offset(raw: bytes, pointer: int, tids: set[int]) -> int | None:
    if not _points_to_itself(raw, pointer):
        return None
    words = range(TID_FROM, TID_TO, 4)
    return next((at for at in words if struct.unpack_from("<I", raw, at)[0] in tids), None)


def _tid_at(memory: Memory, pointer: int, offset: int) -> int:
    raw = memory.read(pointer + offset, 4)
    return int(struct.unpack("<I", raw)[0]) if len(raw) == 4 else 0


def _list_of(memory: Memory, pointer: int, offset: int) -> list[int]:
    """The struct pthreads in the list that this one is in, itself first."""
    link = offset - 16
    around, node = [pointer], read_word(memory, pointer + link)
    while node and node - link != pointer and len(around) < MAX_THREADS:
        around.append(node - link)
        node = read_word(memory, node)
    return around
