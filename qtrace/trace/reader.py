"""Trace files to typed frames; refuses what is no trace, and says which row and column."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from qtrace.errors import TraceUnreadable
from qtrace.trace import details
from qtrace.trace.arrow import arrow_schema
from qtrace.trace.broken import CONTROL, NOT_A_TRACE, explain, refuse
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS, EventKind

# The header is row 1, as in an editor and a spreadsheet; Parquet rows are numbered alike.
FIRST_ROW = 2
# A row with a deep stack must fit in one block of the parser.
BLOCK_SIZE = 8 << 20
TEXT = pa.dictionary(pa.int32(), pa.string())
HEADER_LIMIT = 1 << 20
RAW_START = b'{"format":"qtrace-raw"'
# Events of bottom halves: the only ones that come by the million.
NAMED = ("schedule", "run", "return", "cancel", "delete", "co_schedule")


@dataclass(frozen=True)
class Trace:
    """One recording.

    Attributes:
        path: the file.
        frame: one row per event in time order. ``time_ns`` (int64, CLOCK_MONOTONIC
            nanoseconds), ``tid`` (int64, 0 = none), ``ctx``, ``bh``, ``callback``, ``opaque``
            (uint64 addresses, 0 = absent), all other columns of the schema as categories of
            text, escaped as in the file, and ``row`` (int64, the row in the file).
        header: the attach row's detail.
        losses: one row per interval in which events were lost: ``since_ns``, ``until_ns``,
            ``count`` (int64), ``every`` (of the probes of `--all`, not of watched ones).
        lost_events: how many events were lost.
        exit: the exit row's detail, or None when the target was still there at the end.
        detach: the detach row's detail; empty when the trace was cut off.
        warnings: one sentence for each thing that was skipped or is missing.
        complete: it has its detach row, so nothing is missing at its end.
    """

    path: Path
    frame: pd.DataFrame
    header: dict[str, Any]
    losses: pd.DataFrame
    lost_events: int
    exit: dict[str, Any] | None
    detach: dict[str, Any]
    warnings: list[str]
    complete: bool


def read_trace(path: str | Path, only: Collection[str] | None = None) -> Trace:
    """Read a CSV or Parquet trace.

    Args:
        only: leave out the events of bottom halves of other names (in bounded memory).

    Unknown columns and event kinds are skipped with a warning, a cut last row too.

    Raises:
        TraceUnreadable: no such file, no trace, a broken one, or one of another major version.
    """
    path = Path(path)
    warnings: list[str] = []
    numbers: pa.Array | None = None
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_LIMIT)
        if start.startswith(RAW_START):
            raise TraceUnreadable(
                f"{path} is the raw file of an --all recording that did not end in good order",
                f"qtrace convert {path} trace.csv",
            )
        if only is not None:
            table, numbers = _read_some(path, only)
        elif start.startswith(b"PAR1"):
            table = _read_parquet(path, warnings)
        else:
            table = _read_csv(path, start, warnings)
    except OSError as error:
        raise TraceUnreadable(
            f"cannot read {path}: {error.strerror or error}", "check the name and its permissions"
        ) from error
    frame = _to_frame(path, table, numbers, warnings)
    facts = details.of(path, frame)
    if not facts.complete:
        warnings.append("it was cut off: there is no detach row; what came later is not known")
    if not frame["time_ns"].is_monotonic_increasing:
        frame = frame.sort_values("time_ns", kind="stable", ignore_index=True)
    return Trace(
        path=path,
        frame=frame,
        header=facts.header,
        losses=facts.losses,
        lost_events=facts.lost_events,
        exit=facts.exit,
        detach=facts.detach,
        warnings=warnings,
        complete=facts.complete,
    )


def _read_csv(path: Path, start: bytes, warnings: list[str]) -> pa.Table:
    if not start:
        raise TraceUnreadable(f"{path} is empty", NOT_A_TRACE)
    if b"\0" in start:
        raise TraceUnreadable(f"{path} is a binary file, no trace", NOT_A_TRACE)
    check_first_rows(path, start)
    mapped = pa.memory_map(str(path)).read_buffer()
    end = last_row_end(mapped)
    if end == 0:
        raise TraceUnreadable(f"{path} is no trace: its first row has no end", NOT_A_TRACE)
    if end < len(mapped):
        warnings.append("its last row is cut off and was left out")
    schema = arrow_schema(TEXT)
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(mapped.slice(0, end)),
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_SIZE),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=schema, null_values=[""], strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        explain(path, end)
        raise TraceUnreadable(f"{path}: {error}", NOT_A_TRACE) from error
    table = _known_columns(path, table, warnings).unify_dictionaries()
    for column in COLUMNS:
        if column in INTEGER_COLUMNS or column in POINTER_COLUMNS:
            continue
        texts = table[column].chunk(0).dictionary if table.num_rows else pa.array([], pa.string())
        if pc.any(pc.match_substring_regex(texts, CONTROL.pattern)).as_py():
            explain(path, end)
    return table


def check_first_rows(path: Path, start: bytes) -> None:
    """The version first: another major version may have other columns."""
    text = start.decode("utf-8", "replace")
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        names, first = next(rows), next(rows, [])
    except csv.Error as error:
        raise TraceUnreadable(f"{path} is no CSV file: {error}", NOT_A_TRACE) from error
    row = dict(zip(names, first, strict=False))
    # A first row without its end may be cut off anywhere.
    whole = start.count(b"\n") > 1
    if whole and row.get("event") == "attach" and "detail" in row:
        details.check_version(path, details.parse(path, row["detail"], FIRST_ROW))
    if not {"time_ns", "event"} <= set(names):
        raise TraceUnreadable(
            f"{path} is no trace: its first row does not name the columns of one", NOT_A_TRACE
        )
    check_names(path, names)


def check_names(path: Path, names: list[str]) -> None:
    for column in COLUMNS:
        if names.count(column) != 1:
            how = "is missing" if column not in names else "is there twice"
            raise refuse(path, f"column '{column}' {how}", row=1)


def last_row_end(data: pa.Buffer) -> int:
    """Where the last whole row ends. Every row ends in a line end; one without was cut off."""
    end = len(data)
    while end:
        begin = max(0, end - (1 << 16))
        found = bytes(memoryview(data)[begin:end]).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _read_parquet(path: Path, warnings: list[str]) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        check_names(path, names)
        table = pq.read_table(path)
        table = _known_columns(path, table, warnings)
        return table.cast(arrow_schema(pa.string())).cast(arrow_schema(TEXT)).unify_dictionaries()
    except (pa.ArrowException, OSError) as error:
        raise TraceUnreadable(
            f"{path} is no readable Parquet trace: {str(error).splitlines()[0]}", NOT_A_TRACE
        ) from error


def _known_columns(path: Path, table: pa.Table, warnings: list[str]) -> pa.Table:
    unknown = [repr(name) for name in table.column_names if name not in COLUMNS]
    if unknown:
        warnings.append(f"unknown columns were skipped: {', '.join(unknown)}")
    if table["time_ns"].null_count:
        row = pc.index(pc.is_null(table["time_ns"]), value=True).as_py() + FIRST_ROW
        raise refuse(path, "column 'time_ns' is empty", row=row)
    return table.select(list(COLUMNS))


def _read_some(path: Path, only: Collection[str]) -> tuple[pa.Table, pa.Array]:
    """The rows without a bottom half and those of some, and the number of each."""
    # It stands on this module.
    from qtrace.trace.stream import rows_of

    schema = arrow_schema(pa.string())
    wanted, named = pa.array(list(only), pa.string()), pa.array(NAMED)
    kept, numbers, first = [schema.empty_table()], [pa.array([], pa.int64())], FIRST_ROW
    for table in rows_of(path, lambda _done, _all: None):
        keep = pc.or_(
            pc.is_in(table["name"], value_set=wanted),
            pc.invert(pc.is_in(table["event"], value_set=named)),
        ).combine_chunks()
        kept.append(table.filter(keep))
        numbers.append(pa.array(np.arange(first, first + len(table))).filter(keep))
        first += len(table)
    table = pa.concat_tables(kept).cast(arrow_schema(TEXT)).unify_dictionaries()
    return table, pa.concat_arrays(numbers)


def _to_frame(
    path: Path, table: pa.Table, numbers: pa.Array | None, warnings: list[str]
) -> pd.DataFrame:
    columns = {}
    for name in COLUMNS:
        column = table[name]
        if name in INTEGER_COLUMNS or name in POINTER_COLUMNS:
            columns[name] = pd.Series(column.fill_null(0).to_numpy(), name=name)
        else:
            columns[name] = column.to_pandas()
    frame = pd.DataFrame(columns)
    whole = np.arange(FIRST_ROW, len(frame) + FIRST_ROW)
    frame["row"] = whole if numbers is None else numbers.to_numpy()
    known = frame["event"].isin(get_args(EventKind))
    if not known.all():
        unknown = frame.loc[~known, "event"].astype(str)
        for kind, count in unknown.value_counts().items():
            warnings.append(f"{count} rows of the unknown kind {kind!r} were skipped")
        frame = frame[known].reset_index(drop=True)
    return frame
