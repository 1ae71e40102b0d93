"""The deep part of a check: every bottom half for at most a second, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtrace.errors import NoSuchProcess
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording

LONGEST_S = 1.0
# A quiet guest has some hundred events in a second, a busy one some hundred thousand.
BUDGET = 100_000
# How often it is seen whether the budget is spent.
EVERY_S = 0.01


@dataclass(frozen=True)
class Deep:
    """What a second of ``--all`` shows.

    Attributes:
        lasted_ns, events, lost: for how long it recorded, and how many events.
        cost_ns: what one event cost the thread that it hit, its record included.
        lints: how many looked.
        findings: what they found, as ``judge`` tells it, the worst first.
        longest: the longest run of a bottom half: its name, nanoseconds, and thread.
    """

    lasted_ns: int
    events: int
    lost: int
    cost_ns: float
    lints: int
    findings: list[Any]
    longest: tuple[str, int, str] | None


def look_deep(pid: int, folder: Path, asked: Callable[[], bool]) -> Deep:
    """Record every bottom half until ``LONGEST_S`` are over or ``BUDGET`` events are there.

    Raises:
        NoSuchProcess: the target has ended.
        QtraceError: it cannot be recorded.
    """
    # They take half a second of a processor to load, which a check without it need not spend.
    from qtrace.analysis import judge
    from qtrace.record.all_events.overhead import cost_per_hit
    from qtrace.trace.convert import convert

    raw, path = folder / "deep.raw", folder / "deep.parquet"
    with start_recording(pid, RecordingOptions(raw, everything=True)) as recording:
        every = recording.everything
        assert every is not None
        began = time.monotonic_ns()
        while (left := began / 1e9 + LONGEST_S - time.monotonic()) > 0 and not asked():
            recording.poll(min(left, EVERY_S))
            if recording.ended:
                raise NoSuchProcess(pid)
            if every.counts.produced >= BUDGET:
                break
        lasted = time.monotonic_ns() - began
        recording.stop("duration")
        counts = every.counts
        cost_s = cost_per_hit(every.plan)
    convert(raw, path)
    report = judge([path], lints=None)
    lints = report["lints"]
    found = [(lint["lint"], one) for lint in lints for one in lint["findings"]]
    runs = [
        (half["name"], run["duration_ns"], run["thread"])
        for statistics in report["statistics"]
        for half in statistics
        for run in half["longest"]
    ]
    return Deep(
        lasted, counts.produced, counts.lost, cost_s * 1e9, len(lints),
        [{"lint": name, **one} for name, one in found],
        max(runs, key=lambda run: run[1], default=None),
    )  # fmt: skip
