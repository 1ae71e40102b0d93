"""A CSV or Parquet trace as a stream of tables: bounded memory for any length.

Texts come as dictionaries, of which a recording has few: Parquet holds them so, and the CSV parser
makes them as it goes. What is broken is refused here, with row and column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from qtrace.errors import TraceUnreadable
from qtrace.trace.arrow import TEXT, arrow_schema
from qtrace.trace.broken import CONTROL, NOT_A_TRACE, explain, refuse
from qtrace.trace.chain import links, shown
from qtrace.trace.chain_reader import joined
from qtrace.trace.columns import FIRST_ROW, TEXT_COLUMNS, check_columns
from qtrace.trace.schema import COLUMNS

# Of the file at a time, and of the parser's own steps: a row with a deep stack fits in one.
READ_SIZE, BLOCK_SIZE = 32 << 20, 4 << 20
HEADER_LIMIT = 1 << 20
RAW_START = b'{"format":"qtrace-raw"'
SCHEMA = arrow_schema(TEXT)

Progress = Callable[[int, int], None]


def tables_of(
    path: Path,
    warnings: list[str],
    progress: Progress = lambda _done, _all: None,
    files: Sequence[Path] | None = None,
) -> Iterator[pa.Table]:
    """The rows of a trace in the file's order, with the columns and types of this version; of all
    files of a chain that ``path`` names, as of one.

    Args:
        warnings: takes a sentence for whatever was skipped.
        progress: called with how much is read, and how much there is.
        files: what ``files_there`` gave when it was read first: these have to be there still.

    Raises:
        TraceUnreadable: no such file, no trace, or which row and column is broken.
    """
    files = files_there(path) if files is None else files
    if not files:
        yield from file_tables(path, warnings, progress)
        return
    sizes = [file.stat().st_size if file.exists() else 0 for file in files]

    def part(number: int) -> Progress:
        before, whole = sum(sizes[:number]), sum(sizes)
        return lambda done, of: progress(before + sizes[number] * done // max(of, 1), whole)

    tables = (file_tables(file, warnings, part(number)) for number, file in enumerate(files))
    yield from joined(list(zip(files, tables, strict=True)), warnings)


def files_there(path: Path) -> list[Path]:
    """Those of a chain that hold something; empty where ``path`` names none. A recorder may be
    writing, and letting the oldest go."""
    return [file for file in links(path) if file.exists() and file.stat().st_size]


def file_tables(
    path: Path, warnings: list[str], progress: Progress = lambda _done, _all: None
) -> Iterator[pa.Table]:
    """The rows of one file, whether it is one of a chain or not; see ``tables_of``."""
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
            # For those who have no Parquet file it need not be loaded.
            from qtrace.trace.parquet import parquet_tables

            tables = parquet_tables(path, warnings, progress)
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
        if isinstance(error, FileNotFoundError) and shown(path) != path:
            raise TraceUnreadable(
                f"{path} went while its chain was read: a recorder keeps only the latest files",
                "copy the files first, or read them when the recording has ended",
            ) from error
        raise TraceUnreadable(
            f"cannot read {path}: {error.strerror or error}", "check the name and its permissions"
        ) from error


def _of_csv(
    path: Path, start: bytes, warnings: list[str], progress: Progress
) -> Iterator[pa.Table]:
    names = _csv_names(path, start, warnings)
    with path.open("rb") as file:
        size, begin = path.stat().st_size, len(file.readline())
        # A small file needs no large buffer; one that grows meanwhile gets it.
        buffer, kept, row = bytearray(min(READ_SIZE, size) + HEADER_LIMIT), 0, FIRST_ROW
        while True:
            if kept == len(buffer):
                larger = bytearray(2 * len(buffer))
                larger[:kept] = buffer
                buffer = larger
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


def _csv_names(path: Path, start: bytes, warnings: list[str]) -> list[str]:
    """The columns' names."""
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
    check_columns(path, names, dict(zip(names, first, strict=False)) if whole else {}, warnings)
    return names


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
            # Below zero, or too large for a signed number.
            if pa.types.is_signed_integer(column.type):
                wrong = pc.less(column, 0)
            else:
                wrong = pc.greater_equal(column, pa.scalar(1 << 63, pa.uint64()))
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
        what, wrong = _fault(chunk)
        if what:
            # What no row has makes the file no better.
            at = max(0, pc.index(wrong, value=True).as_py())
            raise refuse(path, f"column '{field.name}' {what}", row + at)
        row += len(chunk)
    return column


def _fault(chunk: pa.DictionaryArray) -> tuple[str, pa.Array]:
    """Why some of its texts cannot be shown, and in which rows; an empty reason when all can."""
    texts, indices = chunk.dictionary, chunk.indices
    try:
        chunk.validate(full=True)
    except pa.ArrowInvalid:
        beyond = pc.or_(pc.less(indices, 0), pc.greater_equal(indices, len(texts)))
        if pc.any(beyond).as_py():
            return "is damaged: there is no such text", beyond
        broken = [not _is_utf8(text) for text in texts.view(pa.binary()).to_pylist()]
        return "is not UTF-8", pa.array(broken).take(indices)
    raw = pc.match_substring_regex(texts, CONTROL.pattern)
    if not pc.any(raw).as_py():
        return "", raw
    rows = raw.take(indices)
    return "holds raw control characters" if pc.any(rows).as_py() else "", rows


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
