"""What is said of a recording that is read part by part is what is said of it in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import Trace, event_order, frames, traces
from qtrace.analysis.explain import explain
from qtrace.analysis.frames import Frames, fold_all
from qtrace.analysis.overview import Overview
from qtrace.analysis.selection import Listing, Selecting
from qtrace.errors import NoSuchInstance
from qtrace.trace import parquet
from qtrace.trace.schema import Event
from qtrace.trace.stream import tables_of
from tests.unit.called import calling
from tests.unit.test_drawn_in_parts import cut, refused
from tests.unit.test_slices import (
    CUTS,
    LATE_NS,
    SAMPLES,
    each_sample,
    in_groups,
    in_parts,
    recordings,
)

# Of each recording so many instances.
ASKED = 40
QUICK = ("all-save-7.2-tcg", "all-stranded-7.2-tcg")


def told(trace: Frames) -> list[object]:
    """Of the worst of each bottom half, of those that any row belongs to, and of many more."""
    overview = Overview()
    asked: list[Selecting] = [Selecting(trace, patterns=["*"])] if trace.names else []
    fold_all(trace, [overview, *asked])
    numbers = np.linspace(0, overview.instances - 1, ASKED).astype(int).tolist()
    some = Selecting(trace, sorted(set(numbers)) if overview.instances else [])
    listing = Listing(numbers if overview.instances else [], ["name", "verdict", "ended_row"])
    fold_all(trace, [some, listing])
    found: list[object] = [overview.threads, overview.unfinished, overview.instances]
    for selecting in (*asked, some):
        if chosen := selecting.end():
            rows = selecting.rows_of(chosen).to_dict("records")
            found += explain(trace, overview, dict(zip(chosen, rows, strict=True)))
            found += [chosen, selecting.verdicts]
    return [*found, listing.rows().to_dict("records")]


def assert_same(path: Path, rows: int) -> None:
    parts, whole = in_parts(path, rows), Trace(path)
    assert parts is not None
    assert told(parts) == told(whole)
    events = whole.events["row"][(whole.events["bh"] != 0).to_numpy()].tolist()
    for row in events[:: max(len(events) // 8, 1)]:
        found: list[list[object]] = []
        for trace in (parts, whole):
            selecting = Selecting(trace, rows=[row])
            fold_all(trace, [selecting])
            try:
                found.append(selecting.end())
            except NoSuchInstance as error:
                found.append([str(error)])
        assert found[0] == found[1]


@each_sample(QUICK)
def test_every_sample_in_parts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = max(sum(map(len, tables_of(path, []))) // 6, 50)
    monkeypatch.setattr(parquet, "STEP_ROWS", rows)
    monkeypatch.setattr(event_order, "LATE_NS", LATE_NS)
    assert_same(in_groups(path, tmp_path / "cut.parquet", rows), rows)


@CUTS
@given(recordings(), st.integers(1, 40))
def test_any_recording_in_any_parts(events: list[Event], rows: int) -> None:
    with cut(events, rows) as path:
        assert_same(path, rows)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None)
@given(recordings(), st.integers(1, 40))
def test_many_recordings_in_any_parts(events: list[Event], rows: int) -> None:
    with cut(events, rows) as path:
        assert_same(path, rows)


@pytest.mark.parametrize("more", [["--list"], ["-b", "*"], ["--format", "json", "7", "3"]])
def test_the_command_reads_no_long_recording_in_one_piece(
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = calling("explain", monkeypatch, capsys)
    path = in_groups(SAMPLES / "all-save-7.2-tcg.parquet", tmp_path / "long.parquet", 10_000)
    whole = call(path, *more)
    monkeypatch.setattr(traces, "LONG", 1000)
    monkeypatch.setattr(frames, "read_trace", refused)
    assert call(path, *more) == whole
