"""A long recording, judged: does the memory, or the time per event, grow with it?

A real recording of a guest that saves and writes, repeated with shifted times and addresses and a
loss after each part. Processor time: it takes minutes, in which a machine does other things.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.analysis import measure
from benchmarks.pairs import Row
from benchmarks.recording import record
from qtrace.trace.schema import Event, to_row
from qtrace.trace.stream import tables_of
from qtrace.trace.table_output import ParquetOutput, plain
from qtrace.trace.table_rows import table_of_rows

SIZE, TIMES, APART_NS = 10_000_000, 10, 1_000_000_000
ENDS = pa.array(["attach", "detach", "exit"])
# What `qtrace analyze` does, and what it does with --verdict-only.
PROGRAMS = {
    "verdicts, lints and statistics": """
from qtrace.analysis import judge
from qtrace.analysis.lints import choose
choose(None)
began = time.perf_counter()
rows = sum(one["ran"] for one in judge(path, lints=None)["statistics"][0])
""",
    "the verdict alone": """
from qtrace.analysis import judge_watched
began = time.perf_counter()
rows = sum(half["scheduled"] for half in judge_watched(path)["bottom_halves"])
""",
}


def repeated(source: Path, target: Path, times: int) -> None:
    """So many times the recording, as one that went on."""
    with io.FileIO(target, "w") as file:
        output = ParquetOutput(file)
        first = last = 0
        for number in range(times):
            for table in _part(source, number, number == times - 1, last - first + APART_NS):
                output.write(table)
                if not number:
                    first = first or table["time_ns"][0].as_py()
                    last = table["time_ns"][-1].as_py()
            if number < times - 1:
                at = last + number * (last - first + APART_NS)
                lost = Event(at + 1, "lost", detail={"count": 7, "since_ns": at, "probes": "all"})
                output.write(table_of_rows([to_row(lost)]))
        output.close()


def _part(source: Path, number: int, is_last: bool, span_ns: int) -> Iterator[pa.Table]:
    """The rows of one time through, without the ends that lie inside."""
    for whole in tables_of(source, []):
        table = plain(whole)
        drop = pc.is_in(table["event"], value_set=ENDS)
        if not number:
            drop = pc.and_(drop, pc.not_equal(table["event"], "attach"))
        elif is_last:
            drop = pc.equal(table["event"], "attach")
        table = table.filter(pc.invert(drop))
        if number:
            if is_last:
                table = _ends_later(table, number * span_ns)
            table = _shifted(table, "time_ns", number * span_ns)
            for column in ("bh", "opaque"):
                table = _shifted(table, column, number << 40)
        yield table


def _ends_later(table: pa.Table, by: int) -> pa.Table:
    """The detach row says until when all probes told."""
    details = table["detail"].to_pylist()
    for at in pc.indices_nonzero(pc.equal(table["event"], "detach")).to_pylist():
        facts = json.loads(details[at])
        details[at] = json.dumps(facts | {"until_ns": facts["until_ns"] + by})
    place = table.schema.get_field_index("detail")
    return table.set_column(place, "detail", pa.array(details, pa.string()))


def _shifted(table: pa.Table, column: str, by: int) -> pa.Table:
    values = table[column].to_numpy()
    moved = np.where(values != 0, values + values.dtype.type(by), 0).astype(values.dtype)
    return table.set_column(table.schema.get_field_index(column), column, pa.array(moved))


def run(_pairs: int) -> list[Row]:
    """A row for the memory of each, one for the time."""
    with TemporaryDirectory() as folder:
        short, long = Path(folder, "short.parquet"), Path(folder, "long.parquet")
        record("pflash", SIZE, short)
        repeated(short, long, TIMES)
        return table(short, long)


def table(short: Path, long: Path) -> list[Row]:
    rows: list[Row] = []
    for what, program in PROGRAMS.items():
        few, many = (measure(program, path, "process_time") for path in (short, long))
        ratio = many[0] / few[0] / TIMES
        rows += [
            (f"{TIMES * SIZE / 1e6:.0f} million events: {what}", f"{many[1]:.0f} MB",
             f"{many[1] / few[1]:.2f}", f"{SIZE / 1e6:.0f} million: {few[1]:.0f} MB",
             "at most 2 GB"),
            ("the same: processor time per event",
             f"{many[0] / SIZE / TIMES * 1e6:.2f} us", f"{ratio:.2f}",
             f"{few[0] / SIZE * 1e6:.2f} us", "at most 1.3"),
        ]  # fmt: skip
    return rows
