"""Many recordings: a row for each, read once, the same bytes whoever reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qtrace.analysis import Trace
from qtrace.analysis.fleet import Serial, read_table, survey
from qtrace.analysis.fleet.files import File, find
from qtrace.analysis.fleet.rows import OtherVersion, Row, analysis_version, row_of
from qtrace.analysis.fleet.table import journal
from qtrace.analysis.fleet.workers import Known
from qtrace.analysis.fleet.worst import command_for, main_finding
from qtrace.analysis.selection import select_instances
from qtrace.errors import FleetFailed, OutputExists
from qtrace.trace.chain import file_of
from tests.unit.called import Call, calling
from tests.unit.chains import cut
from tests.unit.event_rows import attach, write
from tests.unit.fleets import recordings, saves


class BrokenOff(Exception):
    """What ends a run half-way."""


class Some(Serial):
    """Reads so many, then the run is broken off."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, files: Collection[File], known: Known) -> Iterator[Row]:
        yield from super().rows(list(files)[: self.count], known)
        if self.count < len(files):
            raise BrokenOff


def test_a_second_run_reads_nothing_and_writes_the_same_bytes(tmp_path: Path) -> None:
    folder, table = recordings(tmp_path / "traces", 6), tmp_path / "summary.parquet"
    first = survey([str(folder)], table)
    assert (first.read, len(first.rows)) == (6, 6)
    written = table.read_bytes()
    again = survey([str(folder)], table)
    assert again.read == 0
    assert again.rows == first.rows == read_table(table)
    assert table.read_bytes() == written
    assert not list(tmp_path.glob("*.part"))


def test_only_what_is_new_is_read_and_what_is_gone_goes(tmp_path: Path) -> None:
    folder, table = recordings(tmp_path / "traces", 4), tmp_path / "summary.parquet"
    survey([str(folder)], table)
    (folder / "host0/00000.csv").unlink()
    saves(folder / "host1/00001.csv", 12)
    saves(folder / "new.csv", 3)
    found = survey([str(folder)], table)
    assert found.read == 2
    assert [Path(row.url).name for row in found.rows] == [
        "00001.csv", "00002.csv", "00003.csv", "new.csv",
    ]  # fmt: skip


def test_a_recording_that_moved_keeps_its_answer_and_names_where_it_lies(tmp_path: Path) -> None:
    folder, table = tmp_path / "traces", tmp_path / "summary.parquet"
    old = saves(folder / "old.csv", strikes=2)
    (before,) = survey([str(folder)], table).rows
    old.rename(folder / "other.csv")
    (row,) = survey([str(folder)], table).rows
    assert (row.sha256, row.verdict) == (before.sha256, "vcpu-poll")
    assert row.summary is not None
    assert {Path(one.trace).name for one in row.summary.findings.values()} == {"other.csv"}
    (file,) = find([str(folder)])
    known = row_of(file, analysis_version(), [row.sha256])
    assert (known.summary, known.verdict) == (None, "")


def test_a_content_counts_once(tmp_path: Path) -> None:
    one = saves(tmp_path / "traces/a.csv")
    (tmp_path / "traces/b.csv").write_bytes(one.read_bytes())
    rows = survey([str(tmp_path / "traces")], tmp_path / "summary.parquet").rows
    assert [row.duplicate_of for row in rows] == ["", str(one)]


def test_a_recording_that_cannot_be_read_is_a_row_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    saves(folder / "good.csv")
    (folder / "empty.csv").touch()
    (folder / "foreign.parquet").write_bytes(b"\0" * 100)
    write(folder / "newer.csv", [attach(version=[9, 0])])
    os.mkfifo(folder / "pipe.csv")
    rows = {Path(r.url).stem: r for r in survey([str(folder)], tmp_path / "t.parquet").rows}
    assert set(rows) == {"good", "empty", "foreign", "newer"}
    assert "is empty" in rows["empty"].error
    assert "trace format 9.0" in rows["newer"].error
    for name in ("empty", "foreign", "newer"):
        assert (rows[name].verdict, rows[name].summary) == ("inconclusive", None)
        assert rows[name].remedy
    assert survey([str(folder)], tmp_path / "t.parquet").read == 0


def test_a_run_that_was_broken_off_goes_on_from_there(tmp_path: Path) -> None:
    folder, table = recordings(tmp_path / "traces", 6), tmp_path / "summary.parquet"
    with pytest.raises(BrokenOff):
        survey([str(folder)], table, Some(4))
    part = tmp_path / "summary.parquet.part"
    # The last row was being written when it died.
    part.write_bytes(part.read_bytes()[:-20])
    assert not table.exists()
    assert survey([str(folder)], table).read == 3
    survey([str(folder)], tmp_path / "whole.parquet")
    assert table.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_two_runs_do_not_write_one_table(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "traces", 1)
    with journal(tmp_path / "summary.parquet"), pytest.raises(FleetFailed, match="another qtrace"):
        survey([str(folder)], tmp_path / "summary.parquet")
    assert [one.name for one in tmp_path.iterdir()] == ["traces"]


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    folder, other = recordings(tmp_path / "traces", 1), tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(OutputExists):
        survey([str(folder)], other)
    assert pq.read_table(other).num_rows == 1
    with pytest.raises(FleetFailed, match="no table of this"):
        read_table(other)
    assert survey([str(folder)], other, force=True).read == 1


def test_a_table_of_another_analysis_is_made_anew(tmp_path: Path) -> None:
    folder, table = recordings(tmp_path / "traces", 2), tmp_path / "summary.parquet"
    survey([str(folder)], table)
    old = pq.read_table(table)
    facts = {**old.schema.metadata, b"qtrace.analysis": b"0.0.1+old"}
    pq.write_table(old.replace_schema_metadata(facts), table)
    found = survey([str(folder)], table)
    assert (found.read, found.outdated) == (2, "0.0.1+old")


def test_other_code_makes_no_rows(tmp_path: Path) -> None:
    saves(tmp_path / "a.csv")
    (file,) = find([str(tmp_path)])
    with pytest.raises(OtherVersion):
        row_of(file, "0.0.1+other")


def test_a_folder_without_recordings_and_a_name_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetFailed, match="no recording in"):
        survey([str(tmp_path)], tmp_path / "summary.parquet")
    with pytest.raises(FleetFailed, match="there is no"):
        survey([str(tmp_path / "nothing.csv")], tmp_path / "summary.parquet")


def test_the_table_in_the_folder_of_recordings_is_none_of_them(tmp_path: Path) -> None:
    recordings(tmp_path, 2)
    table = tmp_path / "summary.parquet"
    survey([str(tmp_path)], table)
    assert survey([str(tmp_path)], table).read == 0
    assert len(read_table(table)) == 2


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return calling("fleet", monkeypatch, capsys)


def test_the_command_tells_the_build_that_differs_and_how_to_look_at_the_worst(
    fleet: Call, tmp_path: Path
) -> None:
    folder, table = recordings(tmp_path / "traces", 18), tmp_path / "summary.parquet"
    done = fleet(folder, "-o", table, "--by", "build")
    assert done.returncode == 1, done.stderr
    assert "18 recordings: 3 vcpu-poll, 15 main-loop" in done.stdout
    build = done.stdout.partition(f"build {'bb' * 20}: 9 recordings")[2].partition("\n\n")[0]
    assert "vcpu-poll of snapshot_save_job_bh" in build
    assert "likely more frequent" in build
    line = next(line for line in done.stdout.splitlines() if "qtrace explain " in line)
    _qtrace, _explain, name, _row, row = line.split()
    trace = Trace(name)
    (instance,) = select_instances(trace, rows=[int(row)])
    assert trace.instances["verdict"][instance] == "vcpu-poll"
    done = fleet(table, "--by", "w=host([0-9])", "--format", "json")
    told: dict[str, Any] = json.loads(done.stdout)
    assert {group["name"] for group in told["groups"]} == set("01234")
    assert told["recordings"][0]["verdict"] == "vcpu-poll"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x.csv"], "name the table to write by -o"),
        (["x.csv", "-o", "t.csv"], "does not end in .parquet"),
        (["x.csv", "-o", "t.parquet", "--by", "colour"], "one of build, program"),
        (["x.csv", "-o", "t.parquet", "--by", "a=("], "no regular expression"),
        (["x.csv", "-o", "t.parquet", "--workers", "2", "--processes", "2"], "one of --processes"),
    ],
)
def test_wrong_usage_is_told(fleet: Call, arguments: list[str], says: str) -> None:
    done = fleet(*arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_the_files_of_a_chain_are_one_recording(tmp_path: Path) -> None:
    whole, table = saves(tmp_path / "whole/t.csv", strikes=2), tmp_path / "summary.parquet"
    (tmp_path / "traces").mkdir()
    name = cut(whole, tmp_path / "traces", [3, 9])
    saves(tmp_path / "traces/other.csv", 3)
    found = survey([str(tmp_path / "traces")], table)
    assert [Path(row.url).name for row in found.rows] == ["other.csv", "t.chain-*.csv"]
    row = found.rows[1]
    (alone,) = survey([str(whole)], tmp_path / "alone.parquet").rows
    assert row.summary is not None
    assert alone.summary is not None
    assert row.summary.bottom_halves == alone.summary.bottom_halves
    assert row.summary.verdicts == {"vcpu-poll": 1}
    # Its name, and what it is told to be explained by, lead to all of it.
    worst = main_finding(row)
    assert worst is not None
    assert (worst[0].what, command_for(row)) == (
        "vcpu-poll", f"qtrace explain '{row.url}' --row {worst[1].rows[0]}",
    )  # fmt: skip
    assert select_instances(Trace(row.url), rows=worst[1].rows[:1])
    assert survey([str(name)], tmp_path / "one.parquet").rows == [row]
    assert survey([str(tmp_path / "traces")], table).read == 0
    file_of(name, 1).unlink()
    again = survey([str(tmp_path / "traces")], table)
    assert again.read == 1
    assert again.rows[1].verdict in ("inconclusive", "vcpu-poll")
    assert again.rows[1].sha256 != row.sha256
