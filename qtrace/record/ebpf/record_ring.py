"""BPF ring buffers, mapped, and read record by record.

The buffer's file descriptor is mapped: the consumer's position, the producer's, and the data,
once (the kernel offers them twice in a row, which costs a second set of page tables and shows
as twice the memory). Each record has a header of 8 bytes (u32 length with BUSY and DISCARD bits,
u32 page offset).

Made by hand: libbpf's and bcc's readers call a function for each record. The standard library only:
a process that does nothing but this stays small.
"""

from __future__ import annotations

import mmap
import struct

from qtrace.machine.fence import host_fence

HEADER = 8
LENGTH = struct.Struct("<I")
BUSY, DISCARDED = 1 << 31, 1 << 30
PAGE = mmap.PAGESIZE


class Mapped:
    """The pages of one ring buffer."""

    def __init__(self, fd: int, pages: int) -> None:
        self._size = pages * PAGE
        self._consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(fd, PAGE + self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        # Between the producer's position, a record's length, its data, and the position that gives
        # the space back: the kernel goes the same way round.
        self._fence = host_fence()
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._data).cast("Q")


class RecordRing(Mapped):
    """One ring buffer with records of any size."""

    def take(self, most: int) -> tuple[list[bytes], bool]:
        """Copies of the oldest complete records, and whether these were all; frees their space.

        Args:
            most: bytes; the record that exceeds it is the last.
        """
        begin = at = self._consumed[0]
        produced = self._produced[0]
        fence = self._fence
        if fence:
            fence()
        records = []
        while at < produced and at - begin < most:
            place = PAGE + (at & (self._size - 1))
            (length,) = LENGTH.unpack_from(self._data, place)
            if length & BUSY:
                break  # its program was interrupted
            if fence:
                fence()
            size = length & ~DISCARDED
            if not length & DISCARDED:
                records.append(self._copy(place + HEADER, size))
            at += HEADER + (size + 7) // 8 * 8
        if fence:
            fence()
        self._consumed[0] = at
        return records, at == produced

    def _copy(self, place: int, size: int) -> bytes:
        data, end = self._data, PAGE + self._size
        beyond = place + size - end
        if beyond <= 0:
            return data[place : place + size]
        if beyond >= size:
            return data[place - self._size : place - self._size + size]
        return data[place:end] + data[PAGE : PAGE + beyond]
