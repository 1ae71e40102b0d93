"""A CSV or Parquet trace as a stream of tables: bounded memory for any length.

Texts come as dictionaries, of which a recording has few: Parquet holds them so, and the CSV parser
makes them as it goes. What is broken is refused here, with row and column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qtrace.errors import TraceUnreadable
from qtrace.trace import details
from qtrace.trace.arrow import TEXT, arrow_schema
from qtrace.trace.broken import CONTROL, NOT_A_TRACE, explain, refuse
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS

# The header is row 1, as in an editor and a spreadsheet; Parquet rows are numbered alike.
FIRST_ROW = 2
# Of the file at a time, and of the parser's own steps: a row with a deep stack fits in one.
READ_SIZE, BLOCK_SIZE = 32 << 20, 4 << 20
HEADER_LIMIT = 1 << 20
# Row groups are taken together up to this many rows.
STEP_ROWS = 1 << 20
RAW_START = b'{"format":"qtrace-raw"'
TEXT_COLUMNS = tuple(c for c in COLUMNS if c not in (*INTEGER_COLUMNS, *POINTER_COLUMNS))
SCHEMA = arrow_schema(TEXT)

Progress = Callable[[int, int], None]


def tables_of(
    path: Path, warnings: list[str], progress: Progress = lambda _done, _all: None
) -> Iterator[pa.Table]:
    """The rows of a trace in the file's order, with the columns and types of this version.

    Args:
        warnings: takes a sentence for whatever was skipped.
        progress: called with how much is read, and how much there is.

    Raises:
        TraceUnreadable: no such file, no trace, or which row and column is broken.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_LIMIT)
        if start.startswith(RAW_START):
            raise TraceUnreadable(
                f"{path} is the raw file of an --all recording that did not end in good order",
                f"qtrace convert {path} trace.csv",
            )
        if not start:
            raise TraceUnreadable(f"{path} is empty", NOT_A_TRACE)
        if start.startswith(b"PAR1"):
            tables = _of_parquet(path, warnings, progress)
        elif b"\0" in start:
            raise TraceUnreadable(f"{path} is a binary file, no trace", NOT_A_TRACE)
        else:
            tables = _of_csv(path, start, warnings, progress)
        row = FIRST_ROW
        for table in tables:
            checked = _checked(path, table, row)
            row += len(table)
            yield checked
    except OSError as error:
        raise TraceUnreadable(
            f"cannot read {path}: {error.strerror or error}", "check the name and its permissions"
        ) from error


def _of_csv(
    path: Path, start: bytes, warnings: list[str], progress: Progress
) -> Iterator[pa.Table]:
    names = _csv_names(path, start)
    _skipped(names, warnings)
    with path.open("rb") as file:
        size, begin = path.stat().st_size, len(file.readline())
        buffer, kept, row = bytearray(READ_SIZE + HEADER_LIMIT), 0, FIRST_ROW
        while True:
            if kept == len(buffer):
                buffer += bytes(len(buffer))
            view = memoryview(buffer)
            count = file.readinto(view[kept:])
            if count == 0:
                break
            # Every row ends in a line end, and no field holds one.
            end = buffer.rfind(b"\n", 0, kept + count) + 1
            if end:
                table = _parse(path, names, pa.py_buffer(view[:end]), begin, row)
                begin, row = begin + end, row + len(table)
                yield table
                progress(begin, size)
            view.release()
            buffer[: kept + count - end] = buffer[end : kept + count]
            kept += count - end
        if kept:
            warnings.append("its last row is cut off and was left out")


def _parse(path: Path, names: list[str], data: pa.Buffer, begin: int, row: int) -> pa.Table:
    import pyarrow.csv

    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_SIZE, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=SCHEMA,
                include_columns=list(COLUMNS),
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        explain(path, names, begin, begin + len(data), row)
        raise TraceUnreadable(f"{path}: {error}", NOT_A_TRACE) from error


def _csv_names(path: Path, start: bytes) -> list[str]:
    """The columns' names. The version first: another major version may have other columns."""
    if b"\n" not in start:
        raise TraceUnreadable(f"{path} is no trace: its first row has no end", NOT_A_TRACE)
    text = start.decode("utf-8", "replace")
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        names, first = next(rows), next(rows, [])
    except csv.Error as error:
        raise TraceUnreadable(f"{path} is no CSV file: {error}", NOT_A_TRACE) from error
    # A first row without its end may be cut off anywhere.
    whole = start.count(b"\n") > 1
    _check_version(path, dict(zip(names, first, strict=False)) if whole else {})
    _check_names(path, names)
    return names


def _of_parquet(path: Path, warnings: list[str], progress: Progress) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    row = FIRST_ROW
    try:
        with pq.ParquetFile(path, read_dictionary=list(TEXT_COLUMNS)) as file:
            _check_parquet(path, file)
            _skipped(file.schema_arrow.names, warnings)
            groups, rows = range(file.num_row_groups), file.metadata.num_rows
            waiting: list[int] = []
            held = 0
            for group in groups:
                waiting.append(group)
                held += file.metadata.row_group(group).num_rows
                if held >= STEP_ROWS or group == groups[-1]:
                    yield file.read_row_groups(waiting, columns=list(COLUMNS))
                    row += held
                    progress(row - FIRST_ROW, rows)
                    waiting, held = [], 0
    except (pa.ArrowException, OSError) as error:
        where = f" after row {row - 1}" if row > FIRST_ROW else ""
        raise TraceUnreadable(
            f"{path} is no readable Parquet trace{where}: {str(error).splitlines()[0]}", NOT_A_TRACE
        ) from error


def _check_parquet(path: Path, file: Any) -> None:
    """Its columns and their types. Raises TraceUnreadable."""
    schema = file.schema_arrow
    if {"event", "detail"} <= set(schema.names) and file.num_row_groups:
        batches = file.iter_batches(1, columns=["event", "detail"])
        _check_version(path, {key: str(v[0]) for key, v in next(batches).to_pydict().items()})
    _check_names(path, schema.names)
    for column in COLUMNS:
        found = schema.field(column).type
        plain = found.value_type if pa.types.is_dictionary(found) else found
        text = pa.types.is_string(plain) or pa.types.is_large_string(plain)
        if column in TEXT_COLUMNS and not text:
            raise refuse(path, f"column '{column}' holds {found}, no text", row=1)
        if column not in TEXT_COLUMNS and not pa.types.is_integer(found):
            raise refuse(path, f"column '{column}' holds {found}, no integers", row=1)


def _check_version(path: Path, first: dict[str, str]) -> None:
    if first.get("event") == "attach" and "detail" in first:
        details.check_version(path, details.parse(path, first["detail"], FIRST_ROW))


def _check_names(path: Path, names: list[str]) -> None:
    if not {"time_ns", "event"} <= set(names):
        raise TraceUnreadable(
            f"{path} is no trace: its first row does not name the columns of one", NOT_A_TRACE
        )
    for column in COLUMNS:
        if names.count(column) != 1:
            how = "is missing" if column not in names else "is there twice"
            raise refuse(path, f"column '{column}' {how}", row=1)


def _skipped(names: list[str], warnings: list[str]) -> None:
    unknown = [repr(name) for name in names if name not in COLUMNS]
    if unknown:
        warnings.append(f"unknown columns were skipped: {', '.join(unknown)}")


def _checked(path: Path, table: pa.Table, row: int) -> pa.Table:
    """Numbers without nulls, texts as dictionaries of printable text."""
    for column in ("time_ns", "event"):
        if table[column].null_count:
            at = pc.index(pc.is_null(table[column]), value=True).as_py()
            raise refuse(path, f"column '{column}' is empty", row + at)
    columns = [
        (_texts if field.name in TEXT_COLUMNS else _numbers)(path, field, table[field.name], row)
        for field in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


def _numbers(path: Path, field: pa.Field, column: pa.ChunkedArray, row: int) -> pa.ChunkedArray:
    if column.type != field.type:
        try:
            column = column.cast(field.type)
        except pa.ArrowInvalid as error:
            # Too large for a signed number, or below zero.
            wrong = pc.greater_equal(column, pa.scalar(1 << 63, pa.uint64()))
            if pa.types.is_signed_integer(column.type):
                wrong = pc.less(column, 0)
            at = pc.index(wrong, value=True).as_py()
            raise refuse(path, f"column '{field.name}' is out of range", row + at) from error
    return column.fill_null(0) if column.null_count else column


def _texts(path: Path, field: pa.Field, column: pa.ChunkedArray, row: int) -> pa.ChunkedArray:
    if column.null_count:
        column = column.cast(pa.string()).fill_null("")
    if column.type != TEXT:
        # By way of text: another program's dictionary may have other indices.
        column = column.cast(pa.string()).dictionary_encode()
    for chunk in column.chunks:
        if pc.any(pc.match_substring_regex(chunk.dictionary, CONTROL.pattern)).as_py():
            raw = pc.match_substring_regex(chunk.cast(pa.string()), CONTROL.pattern)
            found = pc.index(raw, value=True).as_py()
            if found >= 0:
                what = f"column '{field.name}' holds raw control characters"
                raise refuse(path, what, row + found)
        row += len(chunk)
    return column
