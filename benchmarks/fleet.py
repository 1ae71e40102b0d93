"""Many recordings to one table: files a second, what each costs beyond its summary, memory.

The recordings are small (1 to 4 kB, made of real ones), so that what is measured is the fleet and
not the analysis. Each measurement is a process of its own; they are interleaved.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.analysis import measure
from benchmarks.pairs import Row
from tests.fleet.samples import recordings

COUNT, MANY, ROUNDS = 300, 10_000, 3
SURVEY = """
import tempfile, pathlib
from qtrace.analysis.fleet import Processes, Serial, survey
from qtrace.analysis.fleet.cluster import Dask
if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder, "summary.parquet")
        began = time.perf_counter()
        rows = len(survey([path], table, {workers}).rows)
"""
# What is left of a fleet when others read: rows come ready, as from workers.
CLIENT = """
import tempfile, pathlib
from dataclasses import replace
from qtrace.analysis.fleet import survey
from qtrace.analysis.fleet.files import find
from qtrace.analysis.fleet.rows import analysis_version, row_of
from qtrace.analysis.fleet.table import _columns, _row
known = [row_of(file, analysis_version()) for file in find([path])[:10]]

class Ready:
    def rows(self, files, known_contents):
        for number, file in enumerate(files):
            place = {"url": file.url, "size": file.size, "stamp": file.stamp}
            row = replace(known[number % len(known)], sha256=f"{number:064x}", **place)
            yield _row(_columns(row))

with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    rows = len(survey([path], pathlib.Path(folder, "summary.parquet"), Ready()).rows)
"""
PROGRAMS = {
    "summaries alone": """
from pathlib import Path
from qtrace.analysis.summarise import summarise
from qtrace.errors import TraceUnreadable
files = sorted(Path(path).rglob("*.csv"))
summarise(files[0])
began, rows = time.perf_counter(), 0
for one in files:
    try:
        summarise(one)
    except TraceUnreadable:
        pass
    rows += 1
""",
    "one process": SURVEY.format(workers="Serial()"),
    "2 processes": SURVEY.format(workers="Processes(2)"),
    "Dask, 2 workers": SURVEY.format(workers="Dask(count=2)"),
}


def run(pairs: int) -> list[Row]:
    """The rows of the table; ``pairs`` is more than such long runs need."""
    with TemporaryDirectory() as folder:
        few = recordings(Path(folder, "few"), COUNT)
        took: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(min(pairs, ROUNDS)):
            for name, program in PROGRAMS.items():
                took[name].append(measure(program, few)[0])
        base = took["summaries alone"]
        rows: list[Row] = []
        for name, found in took.items():
            beyond = statistics.median(a - b for a, b in zip(found, base, strict=True))
            ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
            rows.append(
                (f"{COUNT} recordings: {name}", f"{COUNT / statistics.median(found):.0f} a second",
                 f"{ratio:.2f}", f"{beyond / COUNT * 1e3:.1f} ms each beyond the summary",
                 "at most 10 ms" if name == "one process" else "-")
            )  # fmt: skip
        many = recordings(Path(folder, "many"), MANY)
        seconds, peak, _rows = measure(CLIENT, many)
        rows.append(
            (f"{MANY:,} recordings: the client alone", f"{seconds / MANY * 1e3:.1f} ms each", "-",
             f"{peak:.0f} MB", "at most 1 GB")
        )  # fmt: skip
        seconds, peak, _rows = measure(PROGRAMS["2 processes"], many)
        rows.append(
            (f"{MANY:,} recordings, 2 processes", f"{MANY / seconds:.0f} a second", "-",
             f"{peak:.0f} MB in the client", "at most 1 GB")
        )  # fmt: skip
        return rows
