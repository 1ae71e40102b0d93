"""`qtrace export` and `qtrace report` of 1 and 10 million events, beside reading the file.

Each measurement is a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.analysis import ROUNDS, SIZES, measure
from benchmarks.pairs import Row
from benchmarks.recording import record

OPENED = """
from pathlib import Path
from qtrace.analysis import Trace
from qtrace.analysis.lints import choose
from qtrace.analysis.report import judge_opened
from qtrace.export.drawing import drawing_of
from qtrace.export.groundwork import Groundwork
choose(None)
"""
PROGRAMS = {
    "export": f"""{OPENED}
from qtrace.export.perfetto import export
began = time.perf_counter()
one, ground = Trace(path), Groundwork()
drawn = drawing_of(one, judge_opened([one], lints=None, beside=[ground]), ground)
rows = export(drawn, Path(path + ".pftrace"), force=True).bytes
""",
    "report": f"""{OPENED}
from qtrace.export.html import write_html
began = time.perf_counter()
one, ground = Trace(path), Groundwork()
judged = judge_opened([one], lints=None, beside=[ground])
drawn = drawing_of(one, judged, ground)
rows = write_html(judged, [drawn], Path(path + ".html"), force=True)
""",
    "read_parquet": """
import pandas as pd
began = time.perf_counter()
rows = len(pd.read_parquet(path))
""",
}
GOALS = {"export": "at most 3, 90 s, 2 GB", "report": "at most 4, 2 GB"}


def run(pairs: int) -> list[Row]:
    """The rows of the table; ``pairs`` is more than such long runs need."""
    with TemporaryDirectory() as folder:
        files = {size: Path(folder, f"{size}.parquet") for size in SIZES}
        for size, path in files.items():
            record("daemon", size, path)
        return table(files, min(pairs, ROUNDS))


def table(files: dict[int, Path], rounds: int) -> list[Row]:
    small, large = SIZES
    wanted = [(name, size) for size in SIZES for name in PROGRAMS]
    found: dict[tuple[str, int], list[tuple[float, float, int]]] = {key: [] for key in wanted}
    for _ in range(rounds):
        for name, size in wanted:
            found[name, size].append(measure(PROGRAMS[name], files[size]))
    rows: list[Row] = []
    beside = found["read_parquet", large]
    for name, goal in GOALS.items():
        own = found[name, large]
        took, peak = statistics.median(one[0] for one in own), max(one[1] for one in own)
        other = statistics.median(one[0] for one in beside)
        ratio = statistics.median(a[0] / b[0] for a, b in zip(own, beside, strict=True))
        rows.append(
            (f"10 million events: {name}, {own[0][2] / 1e6:.1f} MB", f"{took:.1f} s, {peak:.0f} MB",
             f"{ratio:.2f}", f"read_parquet {other:.1f} s", goal)
        )  # fmt: skip
        less = statistics.median(one[0] for one in found[name, small])
        rows.append(
            (f"{name}: time per event, 10 million beside 1 million", f"{took / large * 1e6:.2f} us",
             f"{took / large / (less / small):.2f}", f"{less / small * 1e6:.2f} us", "flat")
        )  # fmt: skip
    return rows
