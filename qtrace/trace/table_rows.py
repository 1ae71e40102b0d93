"""A few rows, as ``to_row`` makes them, as a typed table."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from qtrace.trace.arrow import arrow_schema
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS

PLAIN = arrow_schema(pa.string())


def table_of_rows(rows: Sequence[Sequence[str]], schema: pa.Schema = PLAIN) -> pa.Table:
    """At least one row."""
    texts = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    columns = []
    for field in schema:
        values = texts[field.name]
        if field.name in INTEGER_COLUMNS or field.name in POINTER_COLUMNS:
            columns.append(pa.array([int(v, 0) if v else 0 for v in values], field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)
