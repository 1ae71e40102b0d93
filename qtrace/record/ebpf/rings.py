"""BPF ring buffers, mapped: read in blocks without an object per record, or one by one.

The buffer's file descriptor is mapped: the consumer's position, the producer's, and the data,
once (the kernel offers them twice in a row, which costs a second set of page tables and shows
as twice the memory). Each record has a header of 8 bytes (u32 length with BUSY and DISCARD bits,
u32 page offset). Where all records are of one size, the data are an array, but for the one record
that may wrap.

Made by hand: libbpf's and bcc's readers call a function for each record, and 200,000 a second
come.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qtrace.record.ebpf.bpf_program import Program

HEADER = 8
LENGTH = struct.Struct("<I")
BUSY, DISCARDED = 1 << 31, 1 << 30
PAGE = mmap.PAGESIZE
Slots = npt.NDArray[np.void]


def possible_cpus() -> int:
    """How many CPUs the kernel numbers, those that are off included."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().replace(",", "-").rpartition("-")[2]) + 1


class Mapped:
    """The pages of one ring buffer."""

    def __init__(self, fd: int, pages: int) -> None:
        self._size = pages * PAGE
        self._consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(fd, PAGE + self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        # x86-64 keeps the order of loads and of stores: no barriers are needed.
        self._consumed = np.frombuffer(self._consumer, np.uint64, 1)
        self._produced = np.frombuffer(self._data, np.uint64, 1)


class Ring(Mapped):
    """One ring buffer. ``slot`` is the dtype of a record with its header."""

    def __init__(self, fd: int, pages: int, slot: np.dtype[np.void]) -> None:
        super().__init__(fd, pages)
        self._slot = slot
        self._length = slot.itemsize - HEADER

    @property
    def produced(self) -> int:
        """Records reserved so far."""
        return int(self._produced[0]) // self._slot.itemsize

    @property
    def fill(self) -> float:
        """The part that waits to be read, 0 to 1."""
        return float(int(self._produced[0]) - int(self._consumed[0])) / self._size

    @property
    def waiting(self) -> int:
        """Records that wait to be read, unfinished ones included."""
        return (int(self._produced[0]) - int(self._consumed[0])) // self._slot.itemsize

    def oldest(self, count: int) -> npt.NDArray[np.uint64]:
        """Of each of the next ``count`` records a time before which neither it nor one of those
        behind it was noted. What lies in an unfinished one is older still."""
        step = self._slot.itemsize
        at = (int(self._consumed[0]) + step * np.arange(count)) & (self._size - 1)
        offset: int = self._slot.fields["time_ns"][1]  # type: ignore[index]
        words = np.frombuffer(self._data, np.uint64, offset=PAGE)
        times = words[((at + offset) & (self._size - 1)) // 8]
        return np.minimum.accumulate(times[::-1])[::-1]

    def peek(self) -> Slots:
        """The next block of complete records, still in the buffer.

        A record whose program was interrupted ends the block; later ones wait for it.
        """
        count = self.waiting
        start = int(self._consumed[0]) & (self._size - 1)
        straight = (self._size - start) // self._slot.itemsize
        if count and not straight:
            slots = self._wrapped(start)
        else:
            slots = np.ndarray((min(count, straight),), self._slot, self._data, offset=PAGE + start)
        unfinished = slots["length"] != self._length
        if unfinished.any():
            return slots[: int(unfinished.argmax())]
        return slots

    def _wrapped(self, start: int) -> Slots:
        """A copy of the record that begins at the end of the data and ends at their beginning."""
        end = PAGE + self._size
        first = self._data[PAGE + start : end]
        rest = self._slot.itemsize - len(first)
        return np.frombuffer(first + self._data[PAGE : PAGE + rest], self._slot)

    def release(self, count: int) -> None:
        """Give the space of so many records back."""
        self._consumed[0] += np.uint64(count * self._slot.itemsize)


class RecordRing(Mapped):
    """One ring buffer with records of any size."""

    def take(self, most: int) -> tuple[list[bytes], bool]:
        """Copies of the oldest complete records, and whether these were all; frees their space.

        Args:
            most: bytes; the record that exceeds it is the last.
        """
        begin = at = int(self._consumed[0])
        produced = int(self._produced[0])
        records = []
        while at < produced and at - begin < most:
            place = PAGE + (at & (self._size - 1))
            (length,) = LENGTH.unpack_from(self._data, place)
            if length & BUSY:
                break  # its program was interrupted
            size = length & ~DISCARDED
            if not length & DISCARDED:
                records.append(self._copy(place + HEADER, size))
            at += HEADER + (size + 7) // 8 * 8
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


class Rings:
    """The ring buffers of every CPU, behind one array of maps."""

    def __init__(self, program: Program, slot: np.dtype[np.void]) -> None:
        """The program's map ``ring`` is the first CPU's and the model of the others'."""
        spec = program.specs["ring"]
        pages = spec.max_entries // PAGE
        self._fds: list[int] = []
        self._last_produced = 0
        self.rings: list[Ring] = []
        for cpu in range(program.specs["rings"].max_entries):
            fd = program.maps["ring"] if cpu == 0 else program.create_map("ring", spec)
            if cpu:
                self._fds.append(fd)
            program.set_inner_map("rings", cpu, fd)
            self.rings.append(Ring(fd, pages, slot))

    @property
    def produced(self) -> int:
        """Records reserved so far, in all."""
        return self._last_produced + sum(ring.produced for ring in self.rings)

    @property
    def fill(self) -> float:
        return max((ring.fill for ring in self.rings), default=0.0)

    def close(self) -> None:
        """Give the memory back. No block may be in use any more."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._last_produced = self.produced
        self.rings.clear()
