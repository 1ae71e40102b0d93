"""A CSV or Parquet trace as a stream of tables: bounded memory for any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from qtrace.errors import TraceUnreadable
from qtrace.trace.arrow import arrow_schema
from qtrace.trace.broken import NOT_A_TRACE, explain
from qtrace.trace.reader import (
    BLOCK_SIZE,
    HEADER_LIMIT,
    check_first_rows,
    check_names,
    last_row_end,
)
from qtrace.trace.schema import COLUMNS

BATCH_ROWS = 1 << 16


def rows_of(path: Path, progress: Callable[[int, int], None]) -> Iterator[pa.Table]:
    """The rows of a trace in the file's order, with the columns of this version.

    Raises TraceUnreadable: no trace, or which row and column is broken.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_LIMIT)
    if start.startswith(b"PAR1"):
        yield from _of_parquet(path, progress)
    else:
        yield from _of_csv(path, start, progress)


def _of_csv(path: Path, start: bytes, progress: Callable[[int, int], None]) -> Iterator[pa.Table]:
    if not start:
        raise TraceUnreadable(f"{path} is empty", NOT_A_TRACE)
    if b"\0" in start:
        raise TraceUnreadable(f"{path} is a binary file, no trace", NOT_A_TRACE)
    check_first_rows(path, start)
    mapped = pa.memory_map(str(path)).read_buffer()
    end = last_row_end(mapped)
    if end == 0:
        raise TraceUnreadable(f"{path} is no trace: its first row has no end", NOT_A_TRACE)
    schema = arrow_schema(pa.string())
    source = pa.BufferReader(mapped.slice(0, end))
    try:
        reader = pyarrow.csv.open_csv(
            source,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_SIZE),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=schema, null_values=[""], strings_can_be_null=False
            ),
        )
        for batch in reader:
            yield _known(pa.table(batch), schema)
            progress(min(source.tell(), end), end)
    except pa.ArrowInvalid as error:
        explain(path, end)
        raise TraceUnreadable(f"{path}: {error}", NOT_A_TRACE) from error


def _of_parquet(path: Path, progress: Callable[[int, int], None]) -> Iterator[pa.Table]:
    schema = arrow_schema(pa.string())
    try:
        with pq.ParquetFile(path) as file:
            check_names(path, file.schema_arrow.names)
            done, rows = 0, file.metadata.num_rows
            for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
                yield _known(pa.table(batch), schema)
                done += batch.num_rows
                progress(done, rows)
    except (pa.ArrowException, OSError) as error:
        raise TraceUnreadable(
            f"{path} is no readable Parquet trace: {str(error).splitlines()[0]}", NOT_A_TRACE
        ) from error


def _known(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of this version, numbers without nulls."""
    columns = []
    for field in schema:
        column = table[field.name].cast(field.type)
        columns.append(column if pa.types.is_string(field.type) else column.fill_null(0))
    return pa.table(columns, schema=schema)
