"""A Parquet trace as a stream of tables, and what exactly is wrong with one that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qtrace.errors import TraceUnreadable
from qtrace.trace.broken import BROKEN, NOT_A_TRACE, refuse
from qtrace.trace.columns import FIRST_ROW, TEXT_COLUMNS, check_columns
from qtrace.trace.schema import COLUMNS

# A file begins and ends with it.
MAGIC = b"PAR1"
# Row groups are taken together up to this many rows.
STEP_ROWS = 1 << 20
# The last: names of columns.
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)


def parquet_tables(
    path: Path, warnings: list[str], progress: Callable[[int, int], None]
) -> Iterator[pa.Table]:
    """The rows of a Parquet trace in the file's order; see ``stream.tables_of``."""
    with path.open("rb") as file:
        # Not the one at its beginning.
        file.seek(max(len(MAGIC), path.stat().st_size - len(MAGIC)))
        if file.read() != MAGIC:
            raise TraceUnreadable(
                f"{path} is cut off: a Parquet file has its index at its end",
                "take the original file, or record to CSV, which is readable up to where it ends",
            )
    try:
        names = pq.read_schema(path).names
        known = [column for column in TEXT_COLUMNS if column in names]
        with pq.ParquetFile(path, read_dictionary=known, page_checksum_verification=True) as file:
            check_columns(path, names, _first_row(file), warnings)
            _check_types(path, file.schema_arrow)
            yield from _groups(path, file, progress)
    except UNREADABLE as error:
        raise TraceUnreadable(
            f"{path} is no readable Parquet file: {_reason(error)}", NOT_A_TRACE
        ) from error


def _groups(path: Path, file: Any, progress: Callable[[int, int], None]) -> Iterator[pa.Table]:
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    rows, row = file.metadata.num_rows, FIRST_ROW
    waiting: list[int] = []
    held = 0
    for group, size in enumerate(sizes):
        waiting.append(group)
        held += size
        if held < STEP_ROWS and group < len(sizes) - 1:
            continue
        try:
            table = file.read_row_groups(waiting, columns=list(COLUMNS))
        except UNREADABLE as error:
            raise _damaged(path, file, waiting, row, error) from error
        if len(table) != held:
            raise refuse(path, f"{len(table):,} rows follow where {held:,} were written", row)
        yield table
        row += held
        progress(row - FIRST_ROW, rows)
        waiting, held = [], 0
    if row - FIRST_ROW != rows:
        raise refuse(path, f"{rows:,} rows were written, it holds {row - FIRST_ROW:,}", row)


def _damaged(
    path: Path, file: Any, groups: list[int], row: int, error: BaseException
) -> TraceUnreadable:
    """The first row group and column of some that cannot be read."""
    for group in groups:
        size = file.metadata.row_group(group).num_rows
        for column in COLUMNS:
            try:
                file.read_row_group(group, columns=[column])
            except UNREADABLE as fault:
                what = f"column '{column}' is damaged in the {size:,} rows from here on"
                return refuse(path, f"{what}: {_reason(fault)}", row)
        row += size
    return TraceUnreadable(f"{path} cannot be read: {_reason(error)}", BROKEN)


def _first_row(file: Any) -> dict[str, str]:
    """Its event and detail; empty where they cannot be read, which is told with the column."""
    columns = {"event", "detail"}
    if not columns <= set(file.schema_arrow.names):
        return {}
    try:
        batch = next(file.iter_batches(1, columns=sorted(columns)), None)
        return {} if batch is None else {key: str(v[0]) for key, v in batch.to_pydict().items()}
    except UNREADABLE:
        return {}


def _check_types(path: Path, schema: pa.Schema) -> None:
    """Raises TraceUnreadable."""
    for column in COLUMNS:
        found = schema.field(column).type
        plain = found.value_type if pa.types.is_dictionary(found) else found
        text = pa.types.is_string(plain) or pa.types.is_large_string(plain)
        if column in TEXT_COLUMNS and not text:
            raise refuse(path, f"column '{column}' holds {plain}, no text", row=1)
        if column not in TEXT_COLUMNS and not pa.types.is_integer(found):
            raise refuse(path, f"column '{column}' holds {found}, no integers", row=1)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
