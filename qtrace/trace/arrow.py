"""The columns' types in Arrow and Parquet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS

# How Parquet is written. No two times are alike: their differences take less than half the file
# that a dictionary of them makes, and are read faster.
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": [column for column in COLUMNS if column != "time_ns"],
    "column_encoding": {"time_ns": "DELTA_BINARY_PACKED"},
    # Else a flipped bit may read as another number.
    "write_page_checksum": True,
}
# A recording has few distinct texts.
TEXT = pa.dictionary(pa.int32(), pa.string())


def arrow_schema(text: pa.DataType) -> pa.Schema:
    """Every column with its type: int64 times and ids, uint64 pointers, ``text`` for the rest."""
    types = dict.fromkeys(INTEGER_COLUMNS, pa.int64()) | dict.fromkeys(POINTER_COLUMNS, pa.uint64())
    return pa.schema([(column, types.get(column, text)) for column in COLUMNS])
