"""Turn a trace into another form: raw, CSV or Parquet in; CSV or Parquet out.

Streams: memory stays bounded however long the recording was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qtrace.errors import OutputFailed, TraceUnreadable
from qtrace.trace.raw import RawReader, Records
from qtrace.trace.raw_rows import RawFacts, RawRowMaker
from qtrace.trace.schema import COLUMNS, INTEGER_COLUMNS, POINTER_COLUMNS
from qtrace.trace.table_output import SCHEMA, CsvOutput, Output, ParquetOutput, plain
from qtrace.trace.writer import Replacing, check_kind, output_failed

# Records of one step.
CHUNK = 1 << 15
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of a conversion.

    Attributes:
        rows: written.
        merged: records of watched bottom halves that have rows of their own.
        complete: the recording has its detach row.
        warnings: what was cut off or unknown.
    """

    rows: int
    merged: int
    complete: bool
    warnings: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    force: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write ``source`` (raw, CSV or Parquet) as ``target`` (.csv or .parquet).

    Args:
        progress: called with bytes read and bytes in all.

    Raises:
        TraceUnreadable: which row and column, or which byte.
        OutputExists, OutputFailed: an earlier file is still there.
    """
    source, target = Path(source), Path(target)
    check_kind(target)
    if target.exists() and source.exists() and source.samefile(target):
        raise OutputFailed(f"{target} is the file itself", "name another file")
    report = progress or (lambda _done, _all: None)
    replacing = Replacing(target, force)
    with open_source(source) as begin:
        is_raw = begin.startswith(b'{"format":"qtrace-raw"')
    tables: Iterator[pa.Table]
    skipped: list[str] = []
    raw = RawTables(RawReader(source), report) if is_raw else None
    if raw is not None:
        skipped = raw.warnings
        tables = raw.tables()
    else:
        # It needs pandas; the conversion that ends a recording does not.
        from qtrace.trace.stream import tables_of

        tables = tables_of(source, skipped, report)
    rows, complete = _write(tables, replacing)
    return Converted(rows, raw.maker.merged if raw else 0, complete, tuple(skipped))


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[bytes]:
    """The first bytes of a file. Raises TraceUnreadable."""
    try:
        with path.open("rb") as file:
            yield file.read(64)
    except OSError as error:
        raise TraceUnreadable(
            f"cannot read {path}: {error.strerror or error}", "check the name and its permissions"
        ) from error


def _write(tables: Iterator[pa.Table], replacing: Replacing) -> tuple[int, bool]:
    """How many rows it took, and whether a detach row was among them."""
    rows, complete = 0, False
    output: Output | None = None
    try:
        file = replacing.open()
        output = ParquetOutput(file) if replacing.path.suffix == ".parquet" else CsvOutput(file)
        with file:
            try:
                for table in tables:
                    output.write(table)
                    rows += table.num_rows
                    complete = complete or has_detach(table)
                output.close()
            except BaseException:
                # Its writer would otherwise finish a file that is closed by then.
                with contextlib.suppress(OSError):
                    output.discard()
                raise
        replacing.settle()
    except OSError as error:
        _drop(replacing)
        raise output_failed(replacing.path, error) from error
    except BaseException:
        _drop(replacing)
        raise
    return rows, complete


def has_detach(table: pa.Table) -> bool:
    return bool(pc.any(pc.equal(_texts(table["event"]), "detach")).as_py())


def _drop(replacing: Replacing) -> None:
    """Remove what was begun: half a trace must not look like one."""
    replacing.discard()
    if replacing.new:
        with contextlib.suppress(OSError):
            replacing.path.unlink(missing_ok=True)


class RawTables:
    """The rows of a raw file in time order, as tables.

    Every mark says that all earlier events are there: what is older is sorted and given out.
    """

    def __init__(self, reader: RawReader, progress: Progress) -> None:
        self._reader = reader
        self._progress = progress
        self.warnings: list[str] = []
        needed = {"time_ns", "ip", "tid", "bh", "ctx", "name", "callback", "opaque", "caller"}
        if not (needed | {"flags", "stack"}) <= set(reader.slot.names or ()):
            raise TraceUnreadable(
                f"{reader.path}: its header describes other records", "take the original file"
            )
        facts = RawFacts(reader.header)
        self._ended = False
        # Once through for what the numbers mean: a context may get its name late.
        for block, _done in reader.blocks(CHUNK):
            facts.learn(block.facts)
            rows = block.facts.get("rows", [])
            self._ended = self._ended or any(row[1] == "detach" for row in rows)
        self.maker = RawRowMaker(facts, reader.slot)
        if reader.truncated:
            self.warnings.append("its last block was cut off: what came later is not known")

    def tables(self) -> Iterator[pa.Table]:
        """Raises TraceUnreadable where the file is damaged."""
        waiting: list[Records] = []
        rows: list[list[str]] = []
        for block, done in self._reader.blocks(CHUNK):
            if block.records is not None:
                waiting.append(block.records)
            rows += block.facts.get("rows", [])
            if block.mark:
                yield from self._ready(waiting, rows, block.mark)
                self._progress(done, self._reader.size)
        if not self._ended:
            # The CPUs' buffers were emptied one after the other: of what came after the last mark
            # some have more than others, and a run may be there whose schedule is not.
            waiting.clear()
        yield from self._ready(waiting, rows, np.iinfo(np.int64).max)
        self._progress(self._reader.size, self._reader.size)
        if self.maker.unknown:
            self.warnings.append(f"{self.maker.unknown} records of unknown probes were left out")

    def _ready(
        self, waiting: list[Records], rows: list[list[str]], mark: int
    ) -> Iterator[pa.Table]:
        records = np.concatenate(waiting) if waiting else np.empty(0, self._reader.slot)
        early = records["time_ns"] < np.uint64(mark)
        waiting[:] = [] if early.all() else [records[~early]]
        order = np.flatnonzero(early)
        order = order[np.argsort(records["time_ns"][order], kind="stable")]
        due = [row for row in rows if int(row[0]) < mark]
        rows[:] = [row for row in rows if int(row[0]) >= mark]
        tables = (
            self.maker.table(records[order[at : at + CHUNK]]) for at in range(0, len(order), CHUNK)
        )
        if not due:
            yield from tables
        else:
            made = pa.concat_tables([*(plain(t) for t in tables), table_of_rows(due)])
            order = pc.sort_indices(made, sort_keys=[("time_ns", "ascending")])
            yield made.take(order)


def table_of_rows(rows: list[list[str]]) -> pa.Table:
    """Rows as ``to_row`` makes them, typed."""
    texts = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    columns = []
    for field in SCHEMA:
        values = texts[field.name]
        if field.name in INTEGER_COLUMNS or field.name in POINTER_COLUMNS:
            columns.append(pa.array([int(v, 0) if v else 0 for v in values], field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=SCHEMA)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())
