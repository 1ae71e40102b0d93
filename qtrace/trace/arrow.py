"""The columns' types in Arrow and Parquet."""

from __future__ import annotations

import pyarrow as pa

from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS

# A recording has few distinct texts.
TEXT = pa.dictionary(pa.int32(), pa.string())


def arrow_schema(text: pa.DataType) -> pa.Schema:
    """Every column with its type: int64 times and ids, uint64 pointers, ``text`` for the rest."""
    types = dict.fromkeys(INTEGER_COLUMNS, pa.int64()) | dict.fromkeys(POINTER_COLUMNS, pa.uint64())
    return pa.schema([(column, types.get(column, text)) for column in COLUMNS])
