"""BPF ring buffers, read in blocks without an object per record: 200,000 a second come.

All records are of one size: the data are an array, but for the one record that may wrap.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qtrace.record.ebpf.bpf_program import Program
from qtrace.record.ebpf.record_ring import HEADER, PAGE, Mapped

Slots = npt.NDArray[np.void]


def possible_cpus() -> int:
    """How many CPUs the kernel numbers, those that are off included."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().replace(",", "-").rpartition("-")[2]) + 1


class Ring(Mapped):
    """One ring buffer. ``slot`` is the dtype of a record with its header."""

    def __init__(self, fd: int, pages: int, slot: np.dtype[np.void]) -> None:
        super().__init__(fd, pages)
        self._slot = slot
        self._length = slot.itemsize - HEADER

    @property
    def produced(self) -> int:
        """Records reserved so far."""
        return self._produced[0] // self._slot.itemsize

    @property
    def fill(self) -> float:
        """The part that waits to be read, 0 to 1."""
        return float(self._produced[0] - self._consumed[0]) / self._size

    @property
    def waiting(self) -> int:
        """Records that wait to be read, unfinished ones included."""
        return (self._produced[0] - self._consumed[0]) // self._slot.itemsize

    def oldest(self, count: int) -> npt.NDArray[np.uint64]:
        """Of each of the next ``count`` records a time before which neither it nor one of those
        behind it was noted. What lies in an unfinished one is older still."""
        step = self._slot.itemsize
        at = (self._consumed[0] + step * np.arange(count)) & (self._size - 1)
        offset: int = self._slot.fields["time_ns"][1]  # type: ignore[index]
        words = np.frombuffer(self._data, np.uint64, offset=PAGE)
        times = words[((at + offset) & (self._size - 1)) // 8]
        return np.minimum.accumulate(times[::-1])[::-1]

    def peek(self, most: int) -> Slots:
        """The next block of complete records, so many at most, still in the buffer.

        A record whose program was interrupted ends the block; later ones wait for it.
        """
        count = min(self.waiting, most)
        if self._fence:
            self._fence()
        start = self._consumed[0] & (self._size - 1)
        straight = (self._size - start) // self._slot.itemsize
        if count and not straight:
            slots = self._wrapped(start)
        else:
            slots = np.ndarray((min(count, straight),), self._slot, self._data, offset=PAGE + start)
        unfinished = slots["length"] != self._length
        if self._fence:
            self._fence()
            if count and not straight:
                # Its data may have been copied before its length.
                slots = self._wrapped(start)
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
        if self._fence:
            self._fence()
        self._consumed[0] += count * self._slot.itemsize


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
