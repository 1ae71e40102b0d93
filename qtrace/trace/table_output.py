"""Tables with the columns of a trace, written as Parquet or as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qtrace.trace.arrow import PARQUET, arrow_schema
from qtrace.trace.schema import COLUMNS, POINTER_COLUMNS

# Rows of one row group.
GROUP = 1 << 16
SCHEMA = arrow_schema(pa.string())


class Output(Protocol):
    """Takes tables with the columns of a trace."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None:
        """Let go of it without finishing it."""


def plain(table: pa.Table) -> pa.Table:
    """The table with texts in place of dictionaries."""
    return table.cast(SCHEMA)


class ParquetOutput:
    """Row groups of a useful size, whatever comes."""

    def __init__(self, file: io.FileIO) -> None:
        self._writer = pq.ParquetWriter(file, SCHEMA, **PARQUET)
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        self._waiting.append(plain(table))
        self._rows += table.num_rows
        if self._rows >= GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def discard(self) -> None:
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting, self._rows = [], 0


class CsvOutput:
    """The text that the csv module would write; quoted once per distinct value."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._put(",".join(COLUMNS).encode() + b"\r\n")

    def write(self, table: pa.Table) -> None:
        fields: list[Any] = [self._field(table, column) for column in COLUMNS[:-1]]
        last = pc.binary_join_element_wise(self._field(table, COLUMNS[-1]), "", "\r\n")
        lines = pc.binary_join_element_wise(*fields, last, ",")
        for chunk in lines.chunks if isinstance(lines, pa.ChunkedArray) else [lines]:
            _validity, offsets, data = chunk.buffers()
            if len(chunk):
                ends = np.frombuffer(offsets, np.int32)[
                    chunk.offset : chunk.offset + len(chunk) + 1
                ]
                self._put(memoryview(data)[ends[0] : ends[-1]])

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass

    def _put(self, data: Any) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _field(self, table: pa.Table, column: str) -> pa.Array:
        values = table[column].combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0) if values.num_chunks else pa.array([], values.type)
        if column == "time_ns":
            return values.cast(pa.string())
        if not pa.types.is_dictionary(values.type):
            values = values.dictionary_encode()
        texts = [_quoted(column, value) for value in values.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(values.indices)


def _quoted(column: str, value: Any) -> str:
    if column in POINTER_COLUMNS:
        return f"{value:#x}" if value else ""
    if column == "tid":
        return str(value) if value else ""
    text = str(value)
    if not any(char in text for char in ',"\r\n'):
        return text
    line = io.StringIO(newline="")
    csv.writer(line).writerow([text])
    return line.getvalue()[:-2]
