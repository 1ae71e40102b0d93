"""A first reading of a long trace: what its bulk is judged by later, in bounded memory.

The rows that come by the million belong to bottom halves. All others (the header, losses, looks,
QMP, jobs, calls) are kept, and what the file says of itself: the bulk can then be read a second
time, part by part, with all that only the end of a file tells.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qtrace.event_kinds import BOTTOM_HALF, NAMES
from qtrace.trace import details
from qtrace.trace.chain import links
from qtrace.trace.columns import FIRST_ROW
from qtrace.trace.edges import beyond, latest_of_probes, tells_its_end
from qtrace.trace.missing import counts_of, missing_of
from qtrace.trace.reader import (
    Arrays,
    Columns,
    Extent,
    TraceFile,
    as_file,
    in_time_order,
    known_kinds,
)
from qtrace.trace.stream import Progress, files_there, tables_of

# Of a CSV file, whose rows nobody has counted: a row of `--all` takes about this.
ROW_BYTES = 120


def is_long(path: Path, rows: int) -> bool:
    """Whether a trace has more rows than so many; of what cannot be read, no."""
    found = 0
    for file in links(path) or [path]:
        try:
            if file.suffix == ".parquet":
                found += pq.read_metadata(file).num_rows
            else:
                found += file.stat().st_size // ROW_BYTES
        except (OSError, pa.ArrowException):
            # Whoever reads it says what is wrong.
            return False
    return found > rows


def outline(
    path: Path, see: Callable[[pd.DataFrame], None], progress: Progress = lambda _done, _all: None
) -> TraceFile | None:
    """Read a trace once.

    Args:
        see: is shown all rows, table by table, in time order; also those that turn out to lie
            behind the recording's end (qtrace/trace/edges.py).

    Returns:
        The trace without the rows of bottom halves. None where parts of it cannot be read alone:
        its tables are not in time order, or an early qtrace recorded it, and only all of its rows
        together tell when it ended.

    Raises:
        TraceUnreadable: see ``read_trace``.
    """
    warnings: list[str] = []
    columns = Columns()
    kept: list[Arrays] = []
    counts: Counter[tuple[str, str]] = Counter()
    latest = of_probes = -1
    rows, files = 0, files_there(path)
    for arrays in _tables(path, files, columns, warnings, progress):
        rows += len(arrays["row"])
        if arrays["time_ns"][0] < latest:
            return None
        latest = int(arrays["time_ns"][-1])
        frame = columns.frame(arrays)
        seldom = ~frame["event"].isin(BOTTOM_HALF).to_numpy()
        kept.append({column: values[seldom] for column, values in arrays.items()})
        counts.update(counts_of(frame))
        of_probes = max(of_probes, latest_of_probes(frame))
        see(frame)
    if not kept:
        return None
    merged = {column: np.concatenate([one[column] for one in kept]) for column in kept[0]}
    frame = known_kinds(columns.frame(merged), warnings)
    facts = details.file_facts(path, frame)
    if not tells_its_end(facts.header, facts.detach, gone=facts.exit is not None):
        return None
    missing = missing_of(counts, facts.detach, None, facts.gaps)
    late = beyond(frame, facts.header, facts.detach, gone=facts.exit is not None)
    seldom_rows = frame[~late].reset_index(drop=True)
    return as_file(
        path, seldom_rows, facts, missing, warnings, Extent(tuple(files), rows, of_probes)
    )


def parts_of(
    file: TraceFile, progress: Progress = lambda _done, _all: None
) -> Iterator[tuple[Columns, Arrays]]:
    """The rows of what ``outline`` has read, table by table, as ``TraceFile.frame`` would have
    them; and what makes a frame of them.

    What its recorder has written since is left out.

    Raises:
        TraceUnreadable: its recorder has let a file go since; see ``read_trace``.
    """
    assert file.read is not None
    columns, read = Columns(), file.read
    for arrays in _tables(file.path, read.files, columns, [], progress, read.rows):
        frame = columns.frame(arrays)
        late = beyond(frame, file.header, file.detach, gone=file.exit is not None)
        kept = ~late & frame["event"].isin(NAMES).to_numpy()
        if kept.all():
            yield columns, arrays
        elif kept.any():
            yield columns, {column: values[kept] for column, values in arrays.items()}


def _tables(
    path: Path,
    files: Sequence[Path],
    columns: Columns,
    warnings: list[str],
    progress: Progress,
    rows: int = sys.maxsize,
) -> Iterator[Arrays]:
    """Each table that holds something, in time order; of the first so many rows."""
    first = FIRST_ROW
    for whole in tables_of(path, warnings, progress, files):
        table = whole.slice(0, rows)
        arrays = columns.arrays(table, np.arange(first, first + len(table)))
        first, rows = first + len(table), rows - len(table)
        if len(table):
            yield in_time_order(arrays)
        if not rows:
            return
