"""The files of a chain as one stream of rows, in which what is missing is a ``lost`` row."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from qtrace.errors import TraceUnreadable
from qtrace.trace.chain import KEY, Link, number_of
from qtrace.trace.schema import Event, to_row
from qtrace.trace.table_rows import table_of_rows

APART = "give each recording a folder of its own"


@dataclass
class _File:
    """One that was read, or is being read.

    Attributes:
        following: what its last row says of the next one; None where it does not end with that.
        rows: how many of the recording's it has.
    """

    path: Path
    link: Link
    following: Link | None = None
    rows: int = 0


def joined(
    files: Sequence[tuple[Path, Iterator[pa.Table]]], warnings: list[str]
) -> Iterator[pa.Table]:
    """The rows of a chain, as one file would have them.

    Args:
        files: those that are there, in their order, each with its rows.
        warnings: takes a sentence for what is not there.

    Raises:
        TraceUnreadable: the files are of several recordings.
    """
    before: _File | None = None
    several = len(files) > 1
    for path, tables in files:
        first = next((table for table in tables if len(table)), None)
        if first is None:
            warnings.append(f"{path.name} holds no row and was left out")
            continue
        header = _row(first, 0)
        link = Link.of(_detail(header)) if header["event"] == "attach" else None
        if link is None and not several:
            # No file of a chain, whatever it is called.
            yield first
            yield from tables
            return
        file = _File(path, _checked(path, link, before))
        if before is None:
            yield _header(first, header)
            missing = _before_first(header["time_ns"], file.link)
        else:
            missing = _between(before, file)
        for table in _rest(first.slice(1), tables, file):
            file.rows += len(table)
            # In one table with the rows of about its time: who reads on needs no order but this.
            lost, missing = missing, []
            yield pa.concat_tables([table_of_rows(lost, table.schema), table]) if lost else table
        if missing:
            yield table_of_rows(missing, first.schema)
        before = file
    if before is not None and before.following is not None:
        number = before.following.number
        warnings.append(f"file {number:,} of the chain, and what comes later, is missing")


def _checked(path: Path, link: Link | None, before: _File | None) -> Link:
    """Raises TraceUnreadable."""
    if link is None:
        raise TraceUnreadable(f"{path} is no file of a chain", APART)
    if link.number != number_of(path.name):
        raise TraceUnreadable(
            f"{path} is file {link.number:,} of its chain by what it holds", "give it its name back"
        )
    if before is not None and link.recording != before.link.recording:
        raise TraceUnreadable(f"{path} is of another recording than {before.path}", APART)
    return link


def _header(first: pa.Table, header: dict[str, Any]) -> pa.Table:
    """The header as of one file."""
    detail = {key: value for key, value in _detail(header).items() if key != KEY}
    row = to_row(Event(header["time_ns"], "attach", detail=detail))
    return table_of_rows([row], first.schema)


def _before_first(since_ns: int, link: Link) -> list[list[str]]:
    """What was before the first file that is there."""
    if link.number == 1:
        return []
    return [_lost((1, link.number - 1), since_ns, link.at_ns, Counter(link.rows))]


def _between(before: _File, file: _File) -> list[list[str]]:
    """What is missing of the file before, and of those between it and this one."""
    missing = []
    own, last = file.link, before.link
    follows = own.number == last.number + 1
    after = before.following or (own if follows else None)
    if after is not None:
        expected = sum(after.rows.values()) - sum(last.rows.values())
        if before.rows < expected:
            files, count = (last.number, last.number), expected - before.rows
            missing.append(_lost(files, last.since_ns, after.at_ns, count))
    if follows:
        return missing
    files = (last.number + 1, own.number - 1)
    if after is not None:
        rows = Counter(own.rows)
        rows.subtract(after.rows)
        return [*missing, _lost(files, after.since_ns, own.at_ns, +rows)]
    # How far the file before went is not known.
    count = sum(own.rows.values()) - sum(last.rows.values()) - before.rows
    return [_lost((last.number, files[1]), last.since_ns, own.at_ns, max(1, count))]


def _lost(
    files: tuple[int, int],
    since_ns: int,
    until_ns: int,
    rows: Counter[str] | int,
) -> list[str]:
    detail: dict[str, Any] = {"files": list(files), "since_ns": since_ns}
    if isinstance(rows, int):
        detail["count"] = rows
    else:
        detail |= {"count": sum(rows.values()), "rows": dict(rows)}
    return to_row(Event(until_ns, "lost", detail=detail))


def _rest(first: pa.Table, tables: Iterator[pa.Table], file: _File) -> Iterator[pa.Table]:
    """The rows behind the header, without the last one where that names the next file."""
    for table in itertools.chain([first], tables):
        if not len(table):
            continue
        last = _row(table, len(table) - 1)
        if last["event"] == "rotate":
            file.following = Link.of(_detail(last))
            table = table.slice(0, len(table) - 1)
        yield table


def _row(table: pa.Table, number: int) -> dict[str, Any]:
    found: dict[str, Any] = table.slice(number, 1).to_pylist()[0]
    return found


def _detail(row: dict[str, Any]) -> dict[str, Any]:
    try:
        detail = json.loads(row["detail"])
    except (ValueError, RecursionError):
        return {}
    return detail if isinstance(detail, dict) else {}
