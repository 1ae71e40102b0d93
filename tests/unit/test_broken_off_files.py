"""Whoever breaks a recording off is told what is there, and which command goes on from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.cli.recording_files import Files
from qtrace.errors import OutputExists


def broken_off(
    output: Path | None, folder: Path, left: Path | None, *, force: bool = False
) -> None:
    """Break it off when a file is there."""

    def record() -> None:
        with Files(output, force, everything=True, folder=folder):
            if left is not None:
                left.write_text("rows")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record()


@pytest.mark.parametrize("force", [False, True])
def test_a_raw_file_is_to_be_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], force: bool
) -> None:
    output, raw = tmp_path / "a trace.csv", tmp_path / "a trace.csv.raw"
    broken_off(output, tmp_path, raw, force=force)
    said = capsys.readouterr().err
    option = " --force" if force else ""
    assert f"qtrace convert{option} '{raw}' '{output}'" in said


def test_a_trace_is_to_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "t.parquet"
    broken_off(output, tmp_path, output)
    assert f"qtrace analyze {output}" in capsys.readouterr().err


def test_where_nothing_was_to_be_kept_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_off(None, tmp_path, tmp_path / "trace.parquet.raw")
    assert "nothing was kept" in capsys.readouterr().err


def test_before_anything_was_recorded_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "t.csv"
    broken_off(output, tmp_path, None)
    output.write_text("an earlier one")
    broken_off(output, tmp_path, None, force=True)
    assert capsys.readouterr().err == ""


def test_the_files_of_a_chain_are_to_be_converted_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = [tmp_path / f"t.chain-0000{number}.parquet.raw" for number in (2, 3)]

    def record() -> None:
        with Files(tmp_path / "t.parquet", False, True, tmp_path, chain=True):
            for path in growing:
                path.write_text("rows")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record()
    said = capsys.readouterr().err
    assert f"2 files from {growing[0]} on hold all that was recorded" in said
    assert f"qtrace convert {growing[0]} --to parquet" in said


def test_an_earlier_chain_goes_when_the_new_one_has_begun(tmp_path: Path) -> None:
    old = [tmp_path / "t.csv", *(tmp_path / f"t.chain-0000{n}.csv" for n in (1, 2, 7))]
    for path in old:
        path.write_text("an earlier one")
    with pytest.raises(OutputExists):
        Files(tmp_path / "t.csv", False, False, tmp_path, chain=True)
    with Files(tmp_path / "t.csv", True, False, tmp_path, chain=True) as files:
        assert all(path.exists() for path in old)
        files.begun()
    assert [path for path in old if path.exists()] == [tmp_path / "t.chain-00001.csv"]
