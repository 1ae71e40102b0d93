"""What QMP commands and jobs met is the same in a recording that is read part by part."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qtrace.analysis import Trace, event_order, frames, timelines, traces
from qtrace.trace import parquet
from qtrace.trace.stream import tables_of
from tests.unit.called import calling
from tests.unit.test_drawn_in_parts import refused
from tests.unit.test_slices import LATE_NS, SAMPLES, each_sample, in_groups, in_parts, shown

# With commands, jobs, and a guest that was stopped.
QUICK = ("all-save-7.2-tcg", "late-reply-stock-10.0-kvm", "stuck-7.2-tcg")


@pytest.mark.parametrize("count", [6])
@each_sample(QUICK)
def test_every_sample_in_parts(
    path: Path, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = max(sum(map(len, tables_of(path, []))) // count, 50)
    monkeypatch.setattr(parquet, "STEP_ROWS", rows)
    monkeypatch.setattr(event_order, "LATE_NS", LATE_NS)
    cut = in_groups(path, tmp_path / "cut.parquet", rows)
    parts = in_parts(cut, rows)
    assert parts is not None
    # Not judged before: it is read for what only its end tells.
    assert timelines([parts]) == timelines([Trace(cut)])


def test_the_command_reads_no_long_recording_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = calling("analyze", monkeypatch, capsys)
    path = in_groups(SAMPLES / "all-save-7.2-tcg.parquet", tmp_path / "long.parquet", 10_000)
    whole = call("--commands", path)
    assert "snapshot-save" in whole.stdout
    monkeypatch.setattr(traces, "LONG", 1000)
    monkeypatch.setattr(frames, "read_trace", refused)
    assert call("--commands", path) == whole


def test_what_comes_seldom_has_frames_without_all_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = in_groups(SAMPLES / "all-save-7.2-tcg.parquet", tmp_path / "long.parquet", 10_000)
    whole = Trace(path)
    whole.read()
    monkeypatch.setattr(traces, "LONG", 1000)
    monkeypatch.setattr(frames, "read_trace", refused)
    long = Trace(path)
    for name in ("commands", "jobs", "carried_out"):
        found, wanted = shown(getattr(long, name)), shown(getattr(whole, name))
        pd.testing.assert_frame_equal(found, wanted)
    assert (long.header, long.warnings, long.held) == (whole.header, whole.warnings, whole.held)
