"""Whether a file has the columns of a trace, of a version that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtrace.errors import TraceUnreadable
from qtrace.trace import details
from qtrace.trace.broken import NOT_A_TRACE, refuse
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS

# The header is row 1, as in an editor and a spreadsheet; Parquet rows are numbered alike.
FIRST_ROW = 2
TEXT_COLUMNS = tuple(c for c in COLUMNS if c not in (*INTEGER_COLUMNS, *POINTER_COLUMNS))


def check_columns(
    path: Path, names: Sequence[str], first: dict[str, str], warnings: list[str]
) -> None:
    """Refuse what is no trace of this major version; unknown columns get a warning.

    Args:
        names: of the columns.
        first: the first row, as far as it can be read.

    Raises:
        TraceUnreadable
    """
    # The version first: another major version may have other columns.
    if first.get("event") == "attach" and "detail" in first:
        details.check_version(path, details.parse(path, first["detail"], FIRST_ROW))
    if not {"time_ns", "event"} <= set(names):
        raise TraceUnreadable(
            f"{path} is no trace: it does not have the columns of one", NOT_A_TRACE
        )
    for column in COLUMNS:
        if names.count(column) != 1:
            how = "is missing" if column not in names else "is there twice"
            raise refuse(path, f"column '{column}' {how}", row=1)
    unknown = [repr(name) for name in names if name not in COLUMNS]
    if unknown:
        warnings.append(f"unknown columns were skipped: {', '.join(unknown)}")
