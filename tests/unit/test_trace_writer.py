"""The CSV on disk: nothing earlier lost, everything flushed readable."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.errors import ExitStatus, OutputExists, OutputFailed
from qtrace.trace.convert import convert
from qtrace.trace.reader import read_trace
from qtrace.trace.schema import COLUMNS
from qtrace.trace.writer import CsvWriter, check_output
from tests.unit.event_rows import attach, detach, run, schedule, write

EVENTS = [attach(), schedule(10), run(20), detach()]


def test_rows_are_rfc_4180_with_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", EVENTS)
    data = path.read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == len(EVENTS) + 1
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["event"] for row in rows] == ["attach", "schedule", "run", "detach"]
    assert rows[1]["callback"] == "0xfffff0000060ffe0"
    assert rows[1]["bh"] == ""


def test_hostile_names_stay_one_row_of_printable_text(tmp_path: Path) -> None:
    name = 'a,"b"\r\n\x1b[31m;\x00\udcff\\'
    path = write(
        tmp_path / "t.csv", [attach(), run(5, thread=name, stack=(name, "leaf")), detach()]
    )
    frame = read_trace(path).frame
    thread, stack = str(frame.loc[1, "thread"]), str(frame.loc[1, "stack"])
    assert thread == 'a,"b"\\x0d\\x0a\\x1b[31m;\\x00\\xff\\\\'
    assert stack.split(";") == [thread.replace(";", "\\x3b"), "leaf"]


def test_flushed_rows_survive_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    code = (
        "import sys\n"
        "from tests.unit.event_rows import *\n"
        f"writer = CsvWriter({str(path)!r})\n"
        "writer.write([attach(), schedule(10), run(20)])\n"
        "writer.flush()\n"
        "writer.write([schedule(30)])\n"
        "print('flushed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"flushed\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    trace = read_trace(path)
    assert list(trace.frame["event"]) == ["attach", "schedule", "run"]
    assert not trace.complete


def test_an_existing_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", EVENTS)
    before = path.read_bytes()
    with pytest.raises(OutputExists) as caught:
        CsvWriter(path)
    assert caught.value.exit_status == ExitStatus.USAGE
    assert path.read_bytes() == before


def test_force_keeps_the_old_recording_until_the_new_one_has_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", EVENTS)
    before = path.read_bytes()
    with CsvWriter(path, force=True) as writer:
        writer.write([])
        writer.flush()
        assert path.read_bytes() == before
    assert path.read_bytes() == before
    with CsvWriter(path, force=True) as writer:
        writer.write([attach()])
        writer.flush()
        assert len(read_trace(path).frame) == 1
        writer.write([detach()])
    assert len(read_trace(path).frame) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_recording_without_a_row_leaves_no_file(tmp_path: Path) -> None:
    CsvWriter(tmp_path / "t.csv").close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    writer = CsvWriter(path)
    path.write_text("mine")
    writer.write(EVENTS)
    with pytest.raises(OutputExists):
        writer.flush()
    writer.close()
    assert path.read_text() == "mine"


def test_a_full_disk_is_one_error_with_its_remedy() -> None:
    writer = CsvWriter("/dev/full")
    writer.write(EVENTS)
    with pytest.raises(OutputFailed) as caught:
        writer.flush()
    assert "No space left" in caught.value.message
    assert "free some space" in caught.value.remedy
    with pytest.raises(OutputFailed):
        writer.flush()
    writer.close()


def test_rows_before_a_full_disk_stay_readable(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    code = (
        "import resource\n"
        "from tests.unit.event_rows import *\n"
        "from qtrace.errors import OutputFailed\n"
        f"writer = CsvWriter({str(path)!r})\n"
        "writer.write([attach(), schedule(10), run(20)])\n"
        "writer.flush()\n"
        "size = writer.path.stat().st_size + 100\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "writer.write([run(30), run(40)])\n"
        "try:\n"
        "    writer.flush()\n"
        "except OutputFailed as error:\n"
        "    print(error.message)\n"
        "writer.close()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "File too large" in result.stdout
    trace = read_trace(path)
    assert list(trace.frame["event"]) == ["attach", "schedule", "run"]
    assert "its last row is cut off and was left out" in trace.warnings


def test_a_folder_or_a_missing_folder_is_refused_before_recording(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(OutputFailed, match="does not exist"):
        check_output(tmp_path / "nowhere" / "t.csv")


def test_parquet_holds_the_same_as_the_csv(tmp_path: Path) -> None:
    from_csv = read_trace(write(tmp_path / "t.csv", EVENTS))
    assert convert(from_csv.path, tmp_path / "t.parquet").complete
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.frame.equals(from_csv.frame)
    assert trace.header == from_csv.header
    with pytest.raises(OutputExists):
        convert(from_csv.path, tmp_path / "t.parquet")
    (tmp_path / "full.parquet").symlink_to("/dev/full")
    with pytest.raises(OutputFailed):
        convert(from_csv.path, tmp_path / "full.parquet")


def test_writing_needs_neither_pandas_nor_pyarrow() -> None:
    code = (
        "import sys, qtrace.trace.schema, qtrace.trace.writer\n"
        "sys.exit(bool({'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
