"""Since when a bottom half has been pending, as far as a trace knows."""

from __future__ import annotations

from pathlib import Path

from qtrace.analysis.instances import pair_instances
from qtrace.trace.reader import read_trace

KEY = ["callback", "ctx", "opaque"]


def pending_since(path: Path) -> dict[tuple[int, int, int], int]:
    """The time (CLOCK_MONOTONIC ns) of the oldest schedule that nothing has answered yet, by
    (callback, ctx, opaque). The trace may still be growing.

    Raises TraceUnreadable.
    """
    instances = pair_instances(read_trace(path).frame)
    waiting = instances[(instances["end"] == "") & instances["scheduled_ns"].notna()]
    oldest = waiting.sort_values("scheduled_ns").drop_duplicates(KEY)
    keys = (oldest[column].astype("uint64").tolist() for column in KEY)
    return dict(zip(zip(*keys, strict=True), oldest["scheduled_ns"].tolist(), strict=True))
