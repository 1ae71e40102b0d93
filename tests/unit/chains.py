"""Chains made of recordings: as `--rotate` would have written them, cut at any rows."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from qtrace.trace.chain import Link, file_of, label
from qtrace.trace.convert import convert
from qtrace.trace.schema import COLUMNS

EVENT, NAME, DETAIL = (COLUMNS.index(column) for column in ("event", "name", "detail"))
RECORDING = "0123456789abcdef"


def rows_of(path: Path) -> list[list[str]]:
    """The rows of a CSV trace, the header's columns first."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def cut(path: Path, folder: Path, places: Collection[int]) -> Path:
    """Write the CSV trace ``path`` as a chain that ends a file before each of these rows.

    Args:
        places: of the rows behind the attach row, from 0.

    Returns:
        What the chain is called.
    """
    columns, attach, *rows = rows_of(path)
    ends = [*sorted(places), len(rows)]
    name, began = folder / path.name, int(attach[0])
    link, before = Link(RECORDING, 1, began, began, {}), 0
    for number, end in enumerate(ends, 1):
        part, later = rows[before:end], rows[end:]
        detail = {**json.loads(attach[DETAIL]), "chain": link.facts()}
        lines = [columns, [*attach[:DETAIL], json.dumps(detail)], *part]
        counted = Counter(link.rows) + Counter(label(row[EVENT], row[NAME]) for row in part)
        if number < len(ends):
            since = min((int(row[0]) for row in later), default=began)
            at = max((int(row[0]) for row in rows[:end]), default=began)
            following = Link(RECORDING, number + 1, since, at, counted)
            last = json.dumps({"chain": following.facts()})
            lines.append([str(at), "rotate", *[""] * (DETAIL - 2), last])
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        file_of(name, number).write_bytes(text.getvalue().encode())
        link, before = following if number < len(ends) else link, end
    return name


def as_csv(sample: Path, folder: Path) -> Path:
    """A sample as CSV, in whose rows nothing is out of its place."""
    made = folder / f"{sample.stem}.csv"
    convert(sample, made)
    return made
