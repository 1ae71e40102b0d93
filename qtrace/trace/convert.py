"""Turn a trace into another form: raw, CSV or Parquet in; CSV or Parquet out.

Streams: memory stays bounded however long the recording was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from qtrace.errors import OutputFailed, TraceUnreadable
from qtrace.trace.chain import file_of, links, number_of
from qtrace.trace.raw_reader import RawReader
from qtrace.trace.raw_tables import RawTables
from qtrace.trace.table_output import CsvOutput, Output, ParquetOutput
from qtrace.trace.writer import Replacing, check_kind, output_failed

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of a conversion.

    Attributes:
        rows: written.
        merged: records of watched bottom halves that have rows of their own.
        complete: the recording has its detach row.
        warnings: what was cut off or unknown.
    """

    rows: int
    merged: int
    complete: bool
    warnings: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    force: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write ``source`` (raw, CSV, Parquet, or a chain of these) as ``target`` (.csv or .parquet).

    Args:
        progress: called with bytes read and bytes in all.

    Raises:
        TraceUnreadable: which row and column, or which byte.
        OutputExists, OutputFailed: an earlier file is still there.
    """
    source, target = Path(source), Path(target)
    check_kind(target)
    if target.exists() and source.exists() and source.samefile(target):
        raise OutputFailed(f"{target} is the file itself", "name another file")
    report = progress or (lambda _done, _all: None)
    replacing = Replacing(target, force)
    files = links(source) or [source]
    tables: Iterator[pa.Table]
    skipped: list[str] = []
    raw = RawTables([RawReader(one) for one in files], report) if _is_raw(files) else None
    if raw is not None:
        skipped = raw.warnings
        tables = raw.tables()
    else:
        # It needs pandas; the conversion that ends a recording does not.
        from qtrace.trace.stream import tables_of

        tables = tables_of(source, skipped, report)
    rows, complete = _write(tables, replacing)
    return Converted(rows, raw.maker.merged if raw else 0, complete, tuple(skipped))


def convert_files(
    source: Path,
    target: Path,
    force: bool = False,
    progress: Progress | None = None,
    done: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """Write each file of a chain as one of the chain ``target``, which they name.

    Args:
        done: is told each file of ``source`` when what it holds is written.

    Raises:
        TraceUnreadable, OutputExists, OutputFailed: what was written so far stays.
    """
    check_kind(target)
    report = progress or (lambda _done, _all: None)
    files = links(source)
    parts: Sequence[tuple[Path, Iterator[pa.Table]]]
    if _is_raw(files):
        parts = RawTables([RawReader(one) for one in files], report).files()
    else:
        from qtrace.trace.stream import file_tables

        parts = [(one, file_tables(one, [], report)) for one in files]
    written = []
    for path, tables in parts:
        one = file_of(target, number_of(path.name))
        _write(tables, Replacing(one, force, aside=True))
        written.append(one)
        done(path)
    return written


def _is_raw(files: Sequence[Path]) -> bool:
    """Raises TraceUnreadable."""
    path = files[0]
    try:
        with path.open("rb") as file:
            return file.read(64).startswith(b'{"format":"qtrace-raw"')
    except OSError as error:
        raise TraceUnreadable(
            f"cannot read {path}: {error.strerror or error}", "check the name and its permissions"
        ) from error


def _write(tables: Iterator[pa.Table], replacing: Replacing) -> tuple[int, bool]:
    """How many rows it took, and whether a detach row was among them."""
    rows, complete = 0, False
    output: Output | None = None
    try:
        file = replacing.open()
        output = ParquetOutput(file) if replacing.path.suffix == ".parquet" else CsvOutput(file)
        with file:
            try:
                for table in tables:
                    output.write(table)
                    rows += table.num_rows
                    complete = complete or has_detach(table)
                output.close()
            except BaseException:
                # Its writer would otherwise finish a file that is closed by then.
                with contextlib.suppress(OSError):
                    output.discard()
                raise
        replacing.settle()
    except OSError as error:
        _drop(replacing)
        raise output_failed(replacing.path, error) from error
    except BaseException:
        _drop(replacing)
        raise
    return rows, complete


def has_detach(table: pa.Table) -> bool:
    return bool(pc.any(pc.equal(_texts(table["event"]), "detach")).as_py())


def _drop(replacing: Replacing) -> None:
    """Remove what was begun: half a trace must not look like one."""
    replacing.discard()
    if replacing.new:
        with contextlib.suppress(OSError):
            replacing.path.unlink(missing_ok=True)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())
