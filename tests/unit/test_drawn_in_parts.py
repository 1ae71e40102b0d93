"""A recording that is read part by part is drawn to the byte as in one piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import Trace, event_order, frames, traces
from qtrace.analysis.frames import Frames, fold_all
from qtrace.analysis.report import Judged, asked_names, report_of
from qtrace.export import windows
from qtrace.export.drawing import Drawing, drawing_of
from qtrace.export.groundwork import Groundwork
from qtrace.export.moments import Moments
from qtrace.export.perfetto import export
from qtrace.export.report_data import recording_data
from qtrace.trace import parquet
from qtrace.trace.reader import TraceFile
from qtrace.trace.schema import Event, to_row
from qtrace.trace.stream import tables_of
from qtrace.trace.table_output import plain
from qtrace.trace.table_rows import table_of_rows
from tests.unit.called import calling
from tests.unit.test_slices import (
    CUTS,
    LATE_NS,
    LIMITS,
    SAMPLES,
    each_sample,
    in_groups,
    in_parts,
    recordings,
)

QUICK = ("all-save-7.2-tcg", "all-migrate-10.0-kvm", "all-stranded-7.2-tcg")


def drawn(trace: Frames) -> Drawing:
    names = asked_names([trace], ["*"] if trace.names else [])
    judged, ground = Judged(trace, names, strict=True, lints=None, thresholds=LIMITS), Groundwork()
    fold_all(trace, [judged, ground])
    return drawing_of(trace, report_of([judged], names), ground)


def exported(one: Drawing, folder: Path) -> bytes:
    export(one, folder / "trace.pftrace", force=True)
    return (folder / "trace.pftrace").read_bytes()


def assert_same(path: Path, rows: int, folder: Path, shown: int) -> None:
    parts = in_parts(path, rows)
    assert parts is not None
    one, other = drawn(parts), drawn(Trace(path))
    assert exported(one, folder) == exported(other, folder)
    for most in (shown, 100_000):
        pages = [json.dumps(recording_data(each, most)) for each in (one, other)]
        assert pages[0] == pages[1]
    moments = Moments(one), Moments(other)
    for time_ns in np.linspace(one.begin_ns - 1, one.end_ns + 1, 23).astype(int).tolist():
        found = [each.at(time_ns, (one.end_ns - one.begin_ns) // 3) for each in moments]
        assert found[0] == found[1]


@pytest.mark.parametrize("count", [6])
@each_sample(QUICK)
def test_every_sample_in_parts(
    path: Path, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = sum(map(len, tables_of(path, [])))
    rows = max(events // count, 50)
    monkeypatch.setattr(parquet, "STEP_ROWS", rows)
    monkeypatch.setattr(event_order, "LATE_NS", LATE_NS)
    monkeypatch.setattr(windows, "EVENTS", events // (count + 1))
    assert_same(in_groups(path, tmp_path / "cut.parquet", rows), rows, tmp_path, events // 30)


@CUTS
@given(recordings(), st.integers(1, 40), st.integers(1, 50))
def test_any_recording_in_any_parts(events: list[Event], rows: int, window: int) -> None:
    cut_anywhere(events, rows, window)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None)
@given(recordings(), st.integers(1, 40), st.integers(1, 50))
def test_many_recordings_in_any_parts(events: list[Event], rows: int, window: int) -> None:
    cut_anywhere(events, rows, window)


def cut_anywhere(events: list[Event], rows: int, window: int) -> None:
    with cut(events, rows) as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "EVENTS", window)
        assert_same(path, rows, path.parent, rows)


@contextmanager
def cut(events: list[Event], rows: int) -> Iterator[Path]:
    """A file of them, in row groups that are read one by one."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "recording.parquet")
        table = table_of_rows([to_row(event) for event in events])
        pq.write_table(plain(table), path, row_group_size=rows)
        patch.setattr(parquet, "STEP_ROWS", rows)
        patch.setattr(event_order, "LATE_NS", LATE_NS)
        yield path


def test_replay_reads_no_long_recording_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = calling("replay", monkeypatch, capsys)
    path = in_groups(SAMPLES / "all-save-7.2-tcg.parquet", tmp_path / "long.parquet", 10_000)
    whole = call(path, "--finding", "1")
    monkeypatch.setattr(traces, "LONG", 1000)
    monkeypatch.setattr(frames, "read_trace", refused)
    assert whole.stdout
    assert call(path, "--finding", "1") == whole


@pytest.mark.parametrize("name", ["export", "report"])
def test_the_command_reads_no_long_recording_in_one_piece(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = calling(name, monkeypatch, capsys)
    path = in_groups(SAMPLES / "all-save-7.2-tcg.parquet", tmp_path / "long.parquet", 10_000)
    whole, parts = (
        tmp_path / f"{size}.{'html' if name == 'report' else 'pftrace'}" for size in (1, 2)
    )
    first = call(path, "-o", whole)
    monkeypatch.setattr(traces, "LONG", 1000)
    monkeypatch.setattr(frames, "read_trace", refused)
    second = call(path, "-o", parts)
    assert (second.returncode, second.stderr) == (first.returncode, first.stderr)
    assert parts.read_bytes() == whole.read_bytes()


def refused(path: Path, _only: object) -> TraceFile:
    raise AssertionError(f"{path} was read in one piece")
