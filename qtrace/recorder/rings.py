"""BPF ring buffers, one per CPU, read in blocks: no Python object per record.

The buffer's file descriptor is mapped: the consumer's position, the producer's, and the data,
once (the kernel offers them twice in a row, which costs a second set of page tables and shows
as twice the memory). Each record has a header of 8 bytes (u32 length with BUSY and DISCARD bits,
u32 page offset). All records are of one size: the data are an array, but for the one record
that may wrap.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qtrace.recorder.program import Program

HEADER = 8
PAGE = mmap.PAGESIZE
Slots = npt.NDArray[np.void]


def possible_cpus() -> int:
    """How many CPUs the kernel numbers, those that are off included."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().replace(",", "-").rpartition("-")[2]) + 1


class Ring:
    """One ring buffer. ``slot`` is the dtype of a record with its header."""

    def __init__(self, fd: int, pages: int, slot: np.dtype[np.void]) -> None:
        self._slot = slot
        self._size = pages * PAGE
        self._length = slot.itemsize - HEADER
        self._consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(fd, PAGE + self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        # x86-64 keeps the order of loads and of stores: no barriers are needed.
        self._consumed = np.frombuffer(self._consumer, np.uint64, 1)
        self._produced = np.frombuffer(self._data, np.uint64, 1)

    @property
    def produced(self) -> int:
        """Records reserved so far."""
        return int(self._produced[0]) // self._slot.itemsize

    @property
    def fill(self) -> float:
        """The part that waits to be read, 0 to 1."""
        return float(int(self._produced[0]) - int(self._consumed[0])) / self._size

    def peek(self) -> tuple[Slots, bool]:
        """The next block of complete records, still in the buffer; and whether it is the last.

        A record whose program was interrupted ends the block; later ones wait for it: then the
        block is empty, and not the last.
        """
        consumed, produced = int(self._consumed[0]), int(self._produced[0])
        count = (produced - consumed) // self._slot.itemsize
        start = consumed & (self._size - 1)
        straight = (self._size - start) // self._slot.itemsize
        if count and not straight:
            slots = self._wrapped(start)
        else:
            slots = np.ndarray((min(count, straight),), self._slot, self._data, offset=PAGE + start)
        unfinished = slots["length"] != self._length
        if unfinished.any():
            return slots[: int(unfinished.argmax())], False
        return slots, len(slots) == count

    def _wrapped(self, start: int) -> Slots:
        """A copy of the record that begins at the end of the data and ends at their beginning."""
        end = PAGE + self._size
        first = self._data[PAGE + start : end]
        rest = self._slot.itemsize - len(first)
        return np.frombuffer(first + self._data[PAGE : PAGE + rest], self._slot)

    def release(self, count: int) -> None:
        """Give the space of so many records back."""
        self._consumed[0] += np.uint64(count * self._slot.itemsize)


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
