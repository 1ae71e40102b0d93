"""Packets stamped by numpy are, byte by byte, what Perfetto's library writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

from qtrace.export.packets import Shape, written

COUNT = 10_000
NAMES = ("time", "track", "name", "row", "opaque", "flow")


def fill(packet: Any, one: Mapping[str, int]) -> None:
    packet.timestamp = one["time"]
    packet.trusted_packet_sequence_id = 1
    event = packet.track_event
    event.type = TrackEvent.TYPE_SLICE_BEGIN
    event.track_uuid, event.name_iid = one["track"], one["name"]
    event.terminating_flow_ids.append(one["flow"])
    event.debug_annotations.add(name_iid=1, uint_value=one["row"])
    event.debug_annotations.add(name_iid=2, pointer_value=one["opaque"])


SHAPE = Shape(fill, fixed=frozenset({"flow"}))


def by_the_library(columns: Mapping[str, Any]) -> list[bytes]:
    values = zip(*(columns[name].tolist() for name in columns), strict=True)
    return [written(SHAPE.packet(dict(zip(columns, one, strict=True)))) for one in values]


def stamped(columns: Mapping[str, Any]) -> list[bytes]:
    return [row.tobytes() for group in SHAPE.stamp(columns) for row in group]


def test_ten_thousand_are_the_librarys() -> None:
    """Of every length that a number can have."""
    random = np.random.default_rng(1)
    shift = random.integers(0, 63, COUNT, np.uint64)
    columns = {name: random.integers(0, 1 << 63, COUNT, np.uint64) >> shift for name in NAMES}
    assert sorted(stamped(columns)) == sorted(by_the_library(columns))


def test_those_of_one_length_stay_in_order() -> None:
    time = np.arange(81_204_500_000_000, 81_204_500_000_000 + COUNT)
    columns = {name: time if name == "time" else time % 100 for name in NAMES}
    assert stamped(columns) == by_the_library(columns)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=20))
def test_any_number_of_64_bits(numbers: list[int]) -> None:
    """A kernel address, or -1 as an argument, takes ten bytes."""
    columns = {name: np.array(numbers, np.uint64) for name in NAMES}
    assert sorted(stamped(columns)) == sorted(by_the_library(columns))


def test_none_make_none() -> None:
    assert stamped({name: np.empty(0, np.int64) for name in NAMES}) == []
