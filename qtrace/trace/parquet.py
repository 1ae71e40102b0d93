"""The same columns as Parquet, for recordings too large to read as text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qtrace.trace.arrow import PARQUET, arrow_schema
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS, Event, to_row
from qtrace.trace.writer import Replacing, output_failed


def write_parquet(
    source: Iterable[Event] | pd.DataFrame, path: str | Path, force: bool = False
) -> None:
    """Write a whole recording, given as events or as the frame of a ``Trace``.

    Texts are escaped as in the CSV, absent pointers and thread ids are 0.

    Raises:
        OutputExists: there is such a file, and no ``force``.
        OutputFailed: it cannot be written; an earlier file is still there.
    """
    schema = arrow_schema(pa.string())
    if isinstance(source, pd.DataFrame):
        table = pa.table(
            [pa.array(source[field.name]).cast(field.type) for field in schema], schema=schema
        )
    else:
        events = list(source)
        texts = dict(zip(COLUMNS, zip(*map(to_row, events), strict=True), strict=False))
        numbers = {*INTEGER_COLUMNS, *POINTER_COLUMNS}
        table = pa.table(
            {
                column: [getattr(event, column) for event in events]
                if column in numbers
                else list(texts.get(column, ()))
                for column in COLUMNS
            },
            schema=schema,
        )
    output = Replacing(path, force)
    try:
        with output.open() as file:
            pq.write_table(table, file, **PARQUET)
        output.settle()
    except OSError as error:
        output.discard()
        raise output_failed(output.path, error) from error
