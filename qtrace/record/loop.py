"""The loop of a recording: take its rows until something ends it."""

from __future__ import annotations

import time
from collections.abc import Callable

from qtrace.record.disk import has_room, size_of
from qtrace.record.recording import Recording
from qtrace.record.recording_options import Limits
from qtrace.trace.schema import Event

# The longest wait for a row; a signal is seen after as long.
WAIT_S = 0.1
CHECK_PERIOD_S = 1.0


def record(
    recording: Recording,
    limits: Limits,
    asked: Callable[[], str],
    warn: Callable[[str], None],
    *,
    saw: Callable[[list[Event]], None] = lambda rows: None,
    each_second: Callable[[], None] = lambda: None,
) -> str:
    """Take rows until something ends the recording, which is yet to be stopped; says what.

    Args:
        asked: who asks for the end; empty as long as nobody does.
        warn: takes what is to be told at once, in sentences; names in them are the target's.
        saw: takes the rows, which are on disk by then.

    Raises:
        OutputFailed, RecorderFailed: see ``Recording.poll``.
    """
    began = checked = time.monotonic()
    every = recording.everything
    meter = None
    if every is not None and limits.max_overhead is not None:
        from qtrace.record.all_events.overhead import MeterAhead

        meter = MeterAhead(every, recording.pid)
    while not (reason := asked()) and not recording.ended:
        rows = recording.poll(WAIT_S)
        for sentence in recording.warnings():
            warn(sentence)
        saw(rows)
        now = time.monotonic()
        if limits.until is not None and any(map(limits.until, rows)):
            return "finding"
        if limits.duration_s is not None and now - began >= limits.duration_s:
            return "duration"
        if now - checked < CHECK_PERIOD_S:
            continue
        checked = now
        each_second()
        if limits.max_size is not None and size_of(recording.path) >= limits.max_size:
            return "size"
        if not has_room(recording.path, every is not None):
            warn("the disk is almost full: the recording ends")
            return "disk almost full"
        percent = meter.percent() if meter is not None else None
        if (
            percent is not None
            and limits.max_overhead is not None
            and percent > limits.max_overhead
        ):
            recording.drop_all(f"cost {percent:.1f} %")
            warn(
                f"--all cost {percent:.1f} % of the target's time: its probes are off, "
                "watching goes on"
            )
            meter = None
    return "target exited" if recording.ended else reason
