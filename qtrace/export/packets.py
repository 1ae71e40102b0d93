"""Perfetto packets by the million: the library makes one of each shape, numpy fills in the numbers.

A packet of a shape differs from the next one only in a few numbers. Where these stand is found by
letting the library serialise the same packet with two values that differ in every byte; all packets
whose numbers take as many bytes have the same layout. What comes out is what the library would have
written, byte by byte (tests/unit/test_export_packets.py).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

Column = npt.NDArray[Any]
# Seven bits in each byte of a varint: where the next byte begins.
LIMITS = np.array([1 << 7 * width for width in range(1, 10)], np.uint64)
FIXED = 8


def written(packet: Any) -> bytes:
    """A packet as it stands in a file, with its length."""
    file = io.BytesIO()
    StreamingTraceProtoBuilder(file).write_packet(packet)
    return file.getvalue()


@dataclass(frozen=True)
class Shape:
    """Packets that differ in some numbers only.

    Attributes:
        fill: sets the fields of a packet, given each number by its name.
        fixed: the names of those that are fixed64; the others are varints.
    """

    fill: Callable[[Any, Mapping[str, int]], None]
    fixed: frozenset[str] = frozenset()

    def packet(self, values: Mapping[str, int]) -> Any:
        """One of them, by the library alone."""
        packet = TracePacket()
        self.fill(packet, values)
        return packet

    def stamp(self, columns: Mapping[str, Column]) -> Iterator[npt.NDArray[np.uint8]]:
        """All of them, as many as the columns are long, in groups of one layout, each in order.

        Args:
            columns: the numbers by their names, none negative.

        Returns:
            Arrays of a row per packet, which stand in a file one after the other.
        """
        names = list(columns)
        values = {name: columns[name].astype(np.uint64, copy=False) for name in names}
        count = len(values[names[0]])
        key = np.zeros(count, np.int64)
        for name in names:
            if name not in self.fixed:
                key = key * (len(LIMITS) + 1) + LIMITS.searchsorted(values[name], side="right")
        for group in _distinct(key):
            own = np.flatnonzero(key == group) if group is not None else slice(None)
            yield self._stamped({name: values[name][own] for name in names})

    def _stamped(self, values: Mapping[str, Column]) -> npt.NDArray[np.uint8]:
        """Packets of one layout."""
        first = {name: int(column[0]) for name, column in values.items()}
        width = {name: self._width(name, value) for name, value in first.items()}
        low = {name: 0 if name in self.fixed else _lowest(width[name]) for name in values}
        begin = np.frombuffer(written(self.packet(low)), np.uint8)
        count = len(next(iter(values.values())))
        made = np.empty((count, len(begin)), np.uint8)
        made[:] = begin
        for name, column in values.items():
            bits = 8 if name in self.fixed else 7
            highest = (1 << bits * width[name]) - 1 if bits * width[name] < 64 else (1 << 64) - 1
            other = np.frombuffer(written(self.packet(low | {name: highest})), np.uint8)
            (places,) = np.nonzero(begin != other)
            # Of a number above 2 ** 63 the tenth byte is always 1.
            known = min(width[name], len(LIMITS)) if bits == 7 else FIXED
            assert places.tolist() == list(range(places[0], places[0] + known)), name
            for number, place in enumerate(places.tolist()):
                part = (column >> np.uint64(bits * number)).astype(np.uint8)
                if bits == 7:
                    part &= 0x7F
                    if number + 1 < width[name]:
                        part |= 0x80
                made[:, place] = part
        return made

    def _width(self, name: str, value: int) -> int:
        if name in self.fixed:
            return FIXED
        return int(LIMITS.searchsorted(np.uint64(value), side="right")) + 1


def _lowest(width: int) -> int:
    """The smallest number whose varint is so long. One byte: another than none at all."""
    return 1 << 7 * (width - 1) if width > 1 else 0


def _distinct(key: npt.NDArray[np.int64]) -> list[int | None]:
    """The values that occur; None for the only one."""
    if not len(key):
        return []
    if (key == key[0]).all():
        return [None]
    return [int(one) for one in np.unique(key)]
