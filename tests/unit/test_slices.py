"""A recording that is judged part by part shows what it shows in one piece."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import Trace, event_order
from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.report import Judged, asked_names, report_of
from qtrace.analysis.report_types import Report
from qtrace.analysis.slices import Outlined, Sliced
from qtrace.trace import parquet
from qtrace.trace.schema import Event, to_row
from qtrace.trace.stream import tables_of
from qtrace.trace.table_output import plain
from qtrace.trace.table_rows import table_of_rows
from tests.unit.event_rows import attach, detach, lost, schedule
from tests.unit.qemu_model import MAIN
from tests.unit.test_analysis_model import NAMES, sessions
from tests.unit.test_event_order import late

SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"
ALL = sorted(path for path in SAMPLES.iterdir() if path.suffix in (".csv", ".parquet"))
# Samples take some seconds: their notes are told apart after a millisecond.
LATE_NS = 1_000_000
CUTS = settings(max_examples=6, deadline=None)


def in_groups(path: Path, target: Path, rows: int) -> Path:
    """The same file in row groups, which are read one by one; its end says when it ended, which
    that of an early qtrace does not."""
    table = plain(pa.concat_tables(tables_of(path, [])))
    # So they are written; early ones wrote some late, and are read in one piece.
    table = table.take(np.argsort(table["time_ns"].to_numpy(), kind="stable"))
    details = table["detail"].to_pylist()
    for at in pc.indices_nonzero(pc.equal(table["event"], "detach")).to_pylist():
        until = {"until_ns": table["time_ns"][at].as_py()}
        details[at] = json.dumps(until | json.loads(details[at]))
    place = table.schema.get_field_index("detail")
    table = table.set_column(place, "detail", pa.array(details, pa.string()))
    pq.write_table(table, target, row_group_size=rows)
    return target


# Where each kind of lint finds something; the others are as many again.
QUICK = {f"all-{name}" for name in ("save-7.2-tcg", "migrate-10.0-kvm", "stranded-7.2-tcg",
         "bench-7.2", "save-rerouted-7.2-tcg")}  # fmt: skip
# Below the usual ones: a sample is too short for these.
LIMITS = {
    "long-callback": "50us", "starvation": "200us", "head-of-line": "50us", "late-reply": "1us",
    "storm": "50/s", "busy-loop": "50/s", "guest-polls": "3/s", "exposure": "1/s",
    "lost-schedule": "1", "long-command": "1us", "stuck-wait": "1ms",
}  # fmt: skip


def in_parts(path: Path, rows: int) -> Outlined | None:
    sliced = Sliced.of(path, rows)
    return None if sliced is None else Outlined(sliced)


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """What of it does not depend on how texts are numbered."""
    texts = frame.select_dtypes("category").columns
    return frame.astype(dict.fromkeys(texts, object)).reset_index(drop=True)


def instances_of(parts: list[Part]) -> pd.DataFrame:
    found = pd.concat([shown(part.instances[part.own]) for part in parts], ignore_index=True)
    number = np.concatenate([part.number[part.own] for part in parts])
    order = np.argsort(number)
    assert number[order].tolist() == list(range(len(number)))
    return found.take(order).reset_index(drop=True)


def runs_of(parts: list[Part]) -> pd.DataFrame:
    """With the rows of other runs and the numbers of instances instead of places."""
    found = []
    for part in parts:
        runs, row = part.runs, part.runs["row"].to_numpy()
        at = filled(runs["instance"])
        own = shown(runs).assign(
            instance=np.where(at >= 0, part.number[at] if len(part.number) else -1, -1),
            **{
                column: np.where(filled(runs[column]) >= 0, row[filled(runs[column])], -1)
                for column in ("outer", "parent")
            },
        )
        found.append(own[part.own_runs])
    return pd.concat(found, ignore_index=True)


def assert_same(whole: Trace, outlined: Outlined) -> None:
    parts = list(outlined.parts())
    pd.testing.assert_frame_equal(instances_of(parts), shown(whole.instances), check_dtype=False)
    pd.testing.assert_frame_equal(runs_of(parts), runs_of([whole]), check_dtype=False)
    ends = [part.latest_ends[part.own_runs] for part in parts]
    resolved = np.concatenate(ends) == whole.latest_ends
    assert (resolved | (np.concatenate(ends) == np.iinfo(np.int64).max)).all()
    assert report(outlined) == report(whole)


def report(trace: Frames) -> Report:
    """What `qtrace analyze` says of it, and of every bottom half."""
    names = asked_names([trace], ["*"] if trace.names else [])
    judged = Judged(trace, names, strict=True, lints=None, thresholds=LIMITS)
    fold_all(trace, [judged])
    return report_of([judged], names)


def each_sample(quick: Sequence[str]) -> pytest.MarkDecorator:
    """The samples by ``path``; those that take long in the soak."""
    samples = [
        pytest.param(path, id=path.stem, marks=[] if path.stem in quick else pytest.mark.soak)
        for path in ALL
    ]
    return pytest.mark.parametrize("path", samples)


@pytest.mark.parametrize("count", [6])
@each_sample(QUICK)
def test_every_sample_in_parts(
    path: Path, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = max(sum(map(len, tables_of(path, []))) // count, 50)
    monkeypatch.setattr(parquet, "STEP_ROWS", rows)
    monkeypatch.setattr(event_order, "LATE_NS", LATE_NS)
    parts = in_parts(in_groups(path, tmp_path / "cut.parquet", rows), rows)
    assert parts is not None
    assert_same(Trace(tmp_path / "cut.parquet"), parts)


@st.composite
def recordings(draw: st.DrawFn) -> list[Event]:
    """Whatever QEMU did, noted late by some threads, with pauses, and with losses."""
    events = list(draw(sessions()).events)
    for _ in range(draw(st.integers(0, 4))):
        place, by = draw(st.integers(0, max(len(events) - 1, 0))), draw(st.integers(1, 6))
        if events:
            events = late(events, place, by)
    pauses = st.sampled_from([0, 10, 10, LATE_NS // 3, LATE_NS, 3 * LATE_NS])
    now, found = 10, [attach(all={}, target={"pid": MAIN}, watched=[{"name": NAMES[0]}])]
    for event in events:
        if draw(st.integers(0, 19)) == 0:
            since = now - draw(st.sampled_from([5, LATE_NS, 5 * LATE_NS]))
            found.append(lost(max(since, 2), now))
            if draw(st.booleans()):
                continue
        found.append(replace(event, time_ns=now))
        now += draw(pauses)
    return [*found, detach(now, until_ns=now, lost=sum(e.event == "lost" for e in found))]


@CUTS
@given(recordings(), st.integers(1, 40))
def test_any_recording_in_any_parts(events: list[Event], rows: int) -> None:
    cut_anywhere(events, rows)


def test_what_is_only_seen_behind_the_end_is_no_part_of_a_recording() -> None:
    """It may be all that a bottom half shows in the file of an early qtrace."""
    begin = attach(all={}, target={"pid": MAIN}, watched=[{"name": NAMES[0]}])
    late = [schedule(now, name=NAMES[1], bh=0x5C0) for now in (20, 30)]
    cut_anywhere([begin, schedule(10, bh=0x99), *late, detach(40, until_ns=20)], 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None)
@given(recordings(), st.integers(1, 40))
def test_many_recordings_in_any_parts(events: list[Event], rows: int) -> None:
    cut_anywhere(events, rows)


def cut_anywhere(events: list[Event], rows: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "recording.parquet")
        table = table_of_rows([to_row(event) for event in events])
        pq.write_table(plain(table), path, row_group_size=rows)
        patch.setattr(parquet, "STEP_ROWS", rows)
        patch.setattr(event_order, "LATE_NS", LATE_NS)
        parts = in_parts(path, rows)
        assert parts is not None
        assert_same(Trace(path), parts)
