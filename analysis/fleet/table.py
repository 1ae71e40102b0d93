"""The rows on disk: a Parquet file that anything can query, and a journal while it is made."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qtrace.analysis.fleet.rows import Row, analysis_version
from qtrace.analysis.summary import Environment, Summary
from qtrace.errors import FleetFailed, OutputExists, OutputFailed
from qtrace.trace.writer import Replacing, output_failed

# In the file's metadata: what it is, and by which code its rows were made.
FORMAT, FORMAT_KEY, VERSION_KEY = "1", b"qtrace.fleet", b"qtrace.analysis"
TEXT = pa.string()
SCHEMA = pa.schema(
    [
        ("url", TEXT), ("verdict", TEXT), ("error", TEXT), ("remedy", TEXT),
        ("duplicate_of", TEXT),
        *((name, TEXT) for name in Environment._fields),
        ("complete", pa.bool_()), ("events", pa.int64()), ("lost_events", pa.int64()),
        ("size", pa.int64()), ("stamp", TEXT), ("sha256", TEXT), ("summary", TEXT),
    ]
)  # fmt: skip
KEPT = [field.name for field in fields(Row) if field.name != "summary"]


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """In place of an earlier one; the same rows are the same bytes.

    Raises:
        OutputFailed
    """
    table = pa.Table.from_pylist([_columns(row) for row in rows], schema=SCHEMA)
    facts = {FORMAT_KEY: FORMAT.encode(), VERSION_KEY: analysis_version().encode()}
    output = Replacing(path, force=True)
    try:
        with output.open() as file:
            pq.write_table(table.replace_schema_metadata(facts), file, compression="zstd")
        output.settle()
    except OSError as error:
        output.discard()
        raise output_failed(path, error) from error


def read_table(path: str | Path) -> list[Row]:
    """The rows of a table, whichever version of the analysis made them.

    Raises:
        FleetFailed: no such file, none of ours, or one of another version of the table.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        text = (str(error).splitlines() or [""])[0]
        raise FleetFailed(f"cannot read {path}: {text}", "name what qtrace fleet wrote") from error
    if (table.schema.metadata or {}).get(FORMAT_KEY) != FORMAT.encode():
        raise FleetFailed(
            f"{path} is no table of this qtrace fleet", "make it anew: qtrace fleet SOURCE -o FILE"
        )
    return [_row(one) for one in table.to_pylist()]


def kept_rows(path: Path, force: bool) -> tuple[list[Row], str]:
    """What an earlier run left in its table, and by which version of the analysis.

    Nothing where there is none; with ``force`` also where it is another file.

    Raises:
        OutputExists: the file is something else.
        OutputFailed: it is a folder, or its folder is missing.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputFailed(f"{path} cannot be written", "name a file in a folder that exists")
    if not path.exists():
        return [], ""
    try:
        facts = pq.read_schema(path).metadata or {}
        if facts.get(FORMAT_KEY) == FORMAT.encode():
            return read_table(path), facts[VERSION_KEY].decode()
        if FORMAT_KEY in facts:
            return [], "another one"
    except (pa.ArrowException, OSError, FleetFailed):
        pass  # No Parquet file, or a broken one.
    if not force:
        raise OutputExists(path)
    return [], ""


@contextlib.contextmanager
def journal(path: Path) -> Iterator[Journal]:
    """The journal beside a table, held for this run alone.

    Raises:
        FleetFailed: another run has it.
        OutputFailed: it cannot be written.
    """
    place = path.with_name(f"{path.name}.part")
    try:
        file = place.open("a+b")
    except OSError as error:
        raise output_failed(place, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetFailed(
                f"another qtrace fleet is writing {path}", "wait for it, or name another file"
            ) from None
        kept = Journal(place, file)
        try:
            yield kept
        finally:
            if not kept.rows:
                place.unlink(missing_ok=True)


class Journal:
    """Rows as they come, so that a run that is broken off goes on from there.

    Attributes:
        rows: those of an earlier run that had the same code, and those of this one.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.rows: list[Row] = []
        first = json.dumps({"qtrace.fleet": FORMAT, "analysis": analysis_version()}).encode()
        file.seek(0)
        if file.readline() == first + b"\n":
            end = file.tell()
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.rows.append(_row(json.loads(line)))
                end += len(line)
            file.truncate(end)
        else:
            file.truncate(0)
            file.write(first + b"\n")
            file.flush()

    def add(self, row: Row) -> None:
        """It outlives this process from here on. Raises OutputFailed."""
        try:
            self._file.write(json.dumps(_columns(row), separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise output_failed(self._path, error) from error
        self.rows.append(row)

    def end(self) -> None:
        """All of it is in the table."""
        self._path.unlink(missing_ok=True)


def _columns(row: Row) -> dict[str, Any]:
    summary = row.summary
    return {
        **{key: getattr(row, key) for key in KEPT},
        **row.environment._asdict(),
        "complete": summary is not None and not summary.incomplete,
        "events": summary.events if summary is not None else None,
        "lost_events": summary.lost_events if summary is not None else None,
        "summary": summary.as_json() if summary is not None else None,
    }


def _row(columns: dict[str, Any]) -> Row:
    text = columns["summary"]
    summary = None if text is None else Summary.from_json(text)
    return Row(**{key: columns[key] for key in KEPT}, summary=summary)
