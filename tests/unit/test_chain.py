"""A recording in several files is read as one; what is missing of it is told, and clears nobody."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrace.analysis import judge, open_traces
from qtrace.errors import OutputExists, OutputFailed, TraceUnreadable
from qtrace.record.rotation import Rotation
from qtrace.trace.chain import file_of, links, shown
from qtrace.trace.convert import convert, convert_files
from qtrace.trace.reader import TraceFile, read_trace
from qtrace.trace.schema import Event
from qtrace.trace.writer import CsvWriter
from tests.unit.chains import as_csv, cut
from tests.unit.event_rows import NAME, attach, detach, run, run_on_vcpu, schedule, write

SAMPLES = Path(__file__).parents[2] / "analysis/samples"
# Of each kind one: losses, looks, QMP, every bottom half.
KINDS = (
    "vcpu-poll-7.2-tcg.csv", "stranded-10.0-tcg.csv", "stuck-10.0-kvm.csv", "crash-7.2-tcg.csv",
    "late-reply-stock-10.0-kvm.parquet", "all-daemon-10.0.parquet", "load-10.0-tcg.parquet",
)  # fmt: skip
EXAMPLES = settings(max_examples=25, deadline=None)
# Saves that run where they should, one that does not, and looks that see nothing.
LIFE = [
    *itertools.chain.from_iterable((schedule(t), run(t + 5)) for t in range(100, 200, 10)),
    schedule(300), run_on_vcpu(305), schedule(400), run(405),
]  # fmt: skip
HITS = {f"{kind} {NAME}": count for kind, count in Counter(e.event for e in LIFE).items()}
WHOLE = [attach(), *LIFE, detach(hits=HITS)]


def chain(folder: Path, *places: int, events: list[Event] = WHOLE) -> Path:
    (folder / "whole").mkdir(exist_ok=True)
    return cut(write(folder / "whole/t.csv", events), folder, places)


def same_rows(one: TraceFile, many: TraceFile) -> None:
    """A chain has texts that no row of its recording has: of its files' own rows."""
    pd.testing.assert_frame_equal(one.frame.astype(object), many.frame.astype(object))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("samples")
    return [as_csv(SAMPLES / name, folder) for name in KINDS]


@EXAMPLES
@given(data=st.data())
def test_a_chain_of_any_cuts_reads_as_one_file(samples: list[Path], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(samples))
    rows = path.read_bytes().count(b"\n") - 2
    places = data.draw(st.lists(st.integers(0, rows), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        name = cut(path, Path(folder), places)
        one, many = read_trace(path), read_trace(name)
        same_rows(one, many)
        for part in ("losses", "step_losses", "qmp_losses"):
            pd.testing.assert_frame_equal(getattr(one, part), getattr(many, part))
        for part in ("header", "detach", "exit", "lost_events", "warnings", "complete", "gaps"):
            assert getattr(one, part) == getattr(many, part)
        convert(name, Path(folder, "whole.csv"))
        assert Path(folder, "whole.csv").read_bytes() == path.read_bytes()


def test_its_files_may_be_parquet(samples: list[Path], tmp_path: Path) -> None:
    name = cut(samples[0], tmp_path, [3, 40])
    made = convert_files(name, tmp_path / "t.parquet", done=Path.unlink)
    assert made == links(tmp_path / "t.parquet")
    assert not links(name)
    same_rows(read_trace(samples[0]), read_trace(tmp_path / "t.parquet"))


def test_each_of_its_names_names_all_of_it(tmp_path: Path) -> None:
    name = chain(tmp_path, 4, 9)
    files = [file_of(name, number) for number in (1, 2, 3)]
    assert [file.name for file in files] == [f"t.chain-0000{n}.csv" for n in (1, 2, 3)]
    assert links(name) == files
    for source in (name, files[1], tmp_path / "t.chain-*.csv", tmp_path / "t.*.csv", files):
        (one,) = open_traces(source)
        assert one.path == shown(files[0]) == tmp_path / "t.chain-*.csv"
        assert len(one.instances) == len(LIFE) / 2
    write(tmp_path / "other.csv", WHOLE)
    assert len(open_traces(tmp_path)) == 2


@EXAMPLES
@given(data=st.data())
def test_without_some_of_its_files_it_clears_nobody(data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(LIFE)), min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        files = links(chain(Path(folder), *places))
        gone = data.draw(st.sets(st.sampled_from(files), max_size=len(files) - 1))
        rows = sum(file.read_bytes().count(NAME.encode()) - 1 for file in gone)
        for file in gone:
            file.unlink()
        trace = read_trace(files[0])
        report = judge([files[0]])
        (half,) = report["bottom_halves"]
        verdict = half["verdict"]
        if files[-1] in gone:
            assert not trace.complete
        else:
            assert trace.lost_events == sum(gap.count for gap in trace.gaps)
        held = [gap.of_bottom_half(NAME, watched=True) for gap in trace.gaps]
        if sum(held):
            assert verdict in ("vcpu-poll", "inconclusive")
        elif files[-1] not in gone:
            assert (rows == 0, verdict) == (True, "vcpu-poll")
        # What is missing is missing within the times that are told.
        there = set(trace.frame["time_ns"])
        missing = [e.time_ns for e in LIFE if e.time_ns not in there]
        if files[-1] not in gone:
            assert all(any(g.since_ns <= t <= g.until_ns for g in trace.gaps) for t in missing)


def test_what_was_not_in_the_missing_files_keeps_its_verdict(tmp_path: Path) -> None:
    quiet = [schedule(100), Event(150, "job", name="j", detail={"status": "running"}), run(200)]
    name = chain(tmp_path, 1, 2, events=[attach(), *quiet, detach()])
    file_of(name, 2).unlink()
    report = judge([name])
    assert report["verdict"] == "main-loop"
    assert report["warnings"] == [f"{shown(name)}: file 2 of the chain is missing: 1 row"]
    assert report["lost_events"] == 1


def test_looks_that_are_missing_leave_threads_in_doubt(tmp_path: Path) -> None:
    looks = [schedule(100), run(110), Event(150, "held", detail={"why": "stopped"}), schedule(200)]
    name = chain(tmp_path, 2, 3, events=[attach(), *looks, run(210), detach()])
    file_of(name, 2).unlink()
    report = judge([name])
    assert report["verdict"] == "inconclusive"
    assert report["notes"] == ["looks are missing with files of the chain: 1 of their rows"]


def test_as_one_file_a_chain_tells_what_it_lacks(tmp_path: Path) -> None:
    name = chain(tmp_path, 4, 9, 15)
    file_of(name, 1).unlink()
    file_of(name, 3).unlink()
    convert(name, tmp_path / "one.csv")
    one, many = read_trace(tmp_path / "one.csv"), read_trace(name)
    assert [gap.first for gap in one.gaps] == [1, 3]
    assert (one.gaps, one.lost_events, one.warnings) == (
        many.gaps, many.lost_events, many.warnings,
    )  # fmt: skip
    halves = [judge([path])["bottom_halves"][0] for path in (tmp_path / "one.csv", name)]
    assert halves[0]["notes"] == halves[1]["notes"]
    assert halves[0]["verdicts"] == halves[1]["verdicts"]


def test_rows_that_were_cut_out_of_one_of_its_files_are_told(tmp_path: Path) -> None:
    name = chain(tmp_path, 9, 15)
    second = file_of(name, 2)
    lines = second.read_bytes().splitlines(keepends=True)
    second.write_bytes(b"".join(lines[:3] + lines[5:]))
    trace = read_trace(name)
    assert trace.warnings == ["2 rows of file 2 of the chain are missing"]
    assert judge([name])["verdict"] in ("vcpu-poll", "inconclusive")
    # Cut off, as by a full disk.
    second.write_bytes(b"".join(lines[:3]))
    assert read_trace(name).warnings == ["5 rows of file 2 of the chain are missing"]


def test_files_of_two_recordings_are_not_taken_together(tmp_path: Path) -> None:
    name = chain(tmp_path, 9)
    text = file_of(name, 2).read_text().replace("0123456789abcdef", "fedcba9876543210")
    file_of(name, 2).write_text(text)
    with pytest.raises(TraceUnreadable, match=r"chain-00002\.csv is of another recording than"):
        read_trace(name)


def test_a_file_of_another_place_is_refused(tmp_path: Path) -> None:
    name = chain(tmp_path, 9)
    file_of(name, 2).rename(file_of(name, 5))
    with pytest.raises(TraceUnreadable, match=r"chain-00005\.csv is file 2 of its chain"):
        read_trace(name)


def test_a_file_that_was_begun_and_holds_nothing_is_none(tmp_path: Path) -> None:
    name = chain(tmp_path, 9)
    file_of(name, 3).touch()
    assert len(read_trace(name).frame) == len(WHOLE)


def rotated(
    name: Path, events: list[Event], size: int = 1, keep: int | None = None
) -> tuple[CsvWriter, Rotation]:
    rotation = Rotation(name, size, keep)
    writer = CsvWriter(rotation.first, aside=True)
    writer.write([rotation.begin(attach())])
    writer.flush()
    for event in events:
        writer.write([event])
        writer.flush()
        rotation.turn(writer, event.time_ns)
    return writer, rotation


def test_a_writer_that_turns_after_each_row_loses_none(tmp_path: Path) -> None:
    writer, _ = rotated(tmp_path / "t.csv", LIFE)
    writer.write([detach(hits=HITS)])
    writer.close()
    assert len(links(tmp_path / "t.csv")) == len(LIFE) + 1
    same_rows(read_trace(write(tmp_path / "one.csv", WHOLE)), read_trace(tmp_path / "t.csv"))
    assert not list(tmp_path.glob(".*"))


def test_it_keeps_the_latest_files_and_says_what_went(tmp_path: Path) -> None:
    writer, rotation = rotated(tmp_path / "t.csv", LIFE, keep=3)
    writer.write([detach(hits=HITS)])
    writer.close()
    assert len(links(tmp_path / "t.csv")) == 3
    assert rotation.removed == len(LIFE) - 2
    trace = read_trace(tmp_path / "t.csv")
    gone = f"files 1 to {rotation.removed} of the chain are missing: {rotation.removed} rows"
    assert trace.warnings == [gone]
    assert judge([tmp_path / "t.csv"])["verdict"] == "inconclusive"


def test_where_the_next_file_cannot_be_begun_the_last_one_goes_on(tmp_path: Path) -> None:
    file_of(tmp_path / "t.csv", 3).mkdir()
    writer = CsvWriter(file_of(tmp_path / "t.csv", 1), aside=True)
    rotation = Rotation(tmp_path / "t.csv", 1, None)
    writer.write([rotation.begin(attach()), schedule(10)])
    writer.flush()
    rotation.turn(writer, 10)
    writer.write([run(20)])
    writer.flush()
    with pytest.raises(OutputFailed, match="is a folder"):
        rotation.turn(writer, 20)
    writer.write([detach()])
    writer.close()
    assert list(read_trace(tmp_path / "t.csv").frame["event"]) == [
        "attach", "schedule", "run", "detach",
    ]  # fmt: skip


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    file_of(tmp_path / "t.csv", 2).write_text("another's")
    with pytest.raises(OutputExists):
        rotated(tmp_path / "t.csv", LIFE[:2])
    assert file_of(tmp_path / "t.csv", 2).read_text() == "another's"
