"""From files to the table: what is new is read, what is known is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qtrace.analysis.fleet.files import File, find
from qtrace.analysis.fleet.rows import Row, again, analysis_version
from qtrace.analysis.fleet.table import journal, kept_rows, write_table
from qtrace.analysis.fleet.workers import Serial, Workers

# How many are done, and how many there are.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fleet:
    """What came of it.

    Attributes:
        rows: in the order of their URLs.
        read: how many files were read for it.
        outdated: the version of the analysis whose table was there, where it is another one.
    """

    rows: list[Row]
    read: int
    outdated: str = ""


def survey(
    sources: Iterable[str],
    output: str | Path,
    workers: Workers | None = None,
    force: bool = False,
    recheck: bool = False,
    progress: Progress = lambda _done, _all: None,
) -> Fleet:
    """A row for each recording, in the Parquet file ``output``.

    A table that is there is brought up to date: a file of the same name, size and time (or ETag) is
    not read again, one of the same content not analysed again; what is not named any more goes.
    When this is broken off the next call goes on from there.

    Args:
        sources: files, folders, globs, URLs (analysis/fleet/files.py).
        workers: who reads; this process when None.
        force: overwrite a file that is no such table.
        recheck: read every file, whatever its name, size and time say.

    Raises:
        FleetFailed, ExtraMissing, OutputExists, OutputFailed
    """
    output = Path(output)
    table, version = kept_rows(output, force)
    files = find(sources, without=[os.path.abspath(output)])
    with journal(output) as part:
        old = [*part.rows, *(table if version == analysis_version() else [])]
        rows = {} if recheck else _unchanged(files, old)
        content = {row.sha256: row for row in reversed(old) if row.sha256}
        new = [file for file in files if file.url not in rows]
        sizes: dict[int, set[str]] = {}
        for row in content.values():
            sizes.setdefault(row.size, set()).add(row.sha256)
        progress(len(rows), len(files))
        for made in (workers or Serial()).rows(new, sizes):
            row = _known(made, content)
            part.add(row)
            rows[row.url] = row
            progress(len(rows), len(files))
        ordered = _duplicates([rows[file.url] for file in files])
        write_table(output, ordered)
        part.end()
    return Fleet(ordered, len(new), version if version not in ("", analysis_version()) else "")


def _unchanged(files: list[File], old: list[Row]) -> dict[str, Row]:
    """The rows of files that are as they were."""
    known = {(row.url, row.size, row.stamp): row for row in old if row.sha256 and row.stamp}
    found = {}
    for file in files:
        row = known.get((file.url, file.size, file.stamp))
        if row is not None:
            found[file.url] = again(row, file)
    return found


def _known(row: Row, content: Mapping[str, Row]) -> Row:
    """A row whose content was known to be so before it was analysed, with its answer."""
    if row.verdict:
        return row
    return again(content[row.sha256], File(row.url, row.size, row.stamp))


def _duplicates(rows: list[Row]) -> list[Row]:
    """Each content counts once: the first of its files by name."""
    first: dict[str, str] = {}
    found = []
    for row in rows:
        original = first.setdefault(row.sha256, row.url) if row.sha256 else row.url
        found.append(replace(row, duplicate_of="" if original == row.url else original))
    return found
