"""What exactly is wrong with a CSV file that does not read as a trace.

The fast reader says only that it fails. This one goes through the rows with the standard
library until it meets the first fault, and is never called for a sound file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from qtrace.errors import TraceUnreadable
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS

NOT_A_TRACE = "give a file that `qtrace attach -o` wrote (docs/trace-format.md)"
BROKEN = "the file was changed or damaged after the recording: take the original"
# The writer escapes them all: a raw one means that something else wrote the row. Beside ASCII's
# those of a terminal's 8-bit mode, and those that change the direction of what is shown.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

INTEGER = re.compile(r"-?[0-9]+|0[xX][0-9a-fA-F]+")


def refuse(path: Path, what: str, row: int, remedy: str = BROKEN) -> TraceUnreadable:
    """The error for a fault in a row; rows are counted from 1, the header's."""
    return TraceUnreadable(f"{path}, row {row}: {what}", remedy)


def explain(path: Path, names: list[str], begin: int, end: int, first: int) -> None:
    """Find the first fault between two offsets in a file; return when there is none.

    Args:
        names: of the columns.
        first: the number of the row that starts at ``begin``.

    Raises:
        TraceUnreadable: with file, row and column.
    """
    number = first - 1
    try:
        for number, row in enumerate(csv.reader(_lines(path, begin, end), strict=True), first):
            _check(path, names, row, number)
    except csv.Error as error:
        raise refuse(path, f"no CSV: {error}", number + 1) from error


def _lines(path: Path, begin: int, end: int) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(begin)
        for line in file:
            if file.tell() > end:
                return
            yield line.decode("utf-8", "surrogateescape")


def _check(path: Path, names: list[str], row: list[str], number: int) -> None:
    if len(row) != len(names):
        raise refuse(path, f"{len(row)} fields where the header has {len(names)}", number)
    for name, text in zip(names, row, strict=True):
        if name not in COLUMNS:
            continue
        where = f"column '{name}'"
        if any("\udc80" <= char <= "\udcff" for char in text):
            raise refuse(path, f"{where} is not UTF-8", number)
        if name in INTEGER_COLUMNS or name in POINTER_COLUMNS:
            _check_integer(path, where, name, text, number)
        elif CONTROL.search(text):
            raise refuse(path, f"{where} holds raw control characters", number)


def _check_integer(path: Path, where: str, name: str, text: str, number: int) -> None:
    if not text:
        if name == "time_ns":
            raise refuse(path, f"{where} is empty", number)
        return
    shown = text if len(text) <= 40 else text[:40] + "..."
    if not INTEGER.fullmatch(text):
        raise refuse(path, f"{where} is no integer: {shown!r}", number)
    value = int(text, 0) if text[:2] in ("0x", "0X") else int(text)
    low, high = (0, 1 << 64) if name in POINTER_COLUMNS else (-(1 << 63), 1 << 63)
    if not low <= value < high:
        raise refuse(path, f"{where} is out of range: {shown}", number)
