"""From a file to every verdict and lint, beside reading the file and what one would write.

The recordings are real and of 1 and 10 million events (benchmarks/recording.py). Each measurement
is a process of its own, so that its peak of memory is its own; they are interleaved.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.pairs import Row
from benchmarks.recording import record

SIZES = (1_000_000, 10_000_000)
ROUNDS = 3
PRELUDE = "import sys, time, json\npath = sys.argv[1]\n"
# Not ru_maxrss, which begins with what the parent had when it forked.
EPILOGUE = (
    "\ntook = time.perf_counter() - began"
    "\nstatus = dict(line.split(':', 1) for line in open('/proc/self/status'))"
    "\nprint(json.dumps([took, int(status['VmHWM'].split()[0]) / 1024, rows]))"
)
# What is imported is no part of the time.
PROGRAMS = {
    "ours": """
from qtrace.analysis import open_traces
from qtrace.analysis.lints import choose
choose(None)
began = time.perf_counter()
(trace,) = open_traces(path)
rows = len(trace.instances)
trace.lint()
""",
    # What the SQL below answers, too.
    "verdicts": """
from qtrace.analysis import open_traces
began = time.perf_counter()
(trace,) = open_traces(path)
found = trace.instances.groupby(["name", "context", "verdict"], observed=True)["wait_ns"]
rows = len(found.agg(["size", "median"]))
""",
    "read_parquet": """
import pandas as pd
began = time.perf_counter()
rows = len(pd.read_parquet(path))
""",
    "read_csv": """
import pyarrow.csv
began = time.perf_counter()
rows = pyarrow.csv.read_csv(path).num_rows
""",
    # The verdict of a run is in its own row; pairs and waits are left out.
    "groupby-apply": """
import pandas as pd
began = time.perf_counter()
frame = pd.read_parquet(path)
runs = frame[frame["event"] == "run"]

def verdict(row):
    names = {part.split("+")[0] for part in row["stack"].split(";")}
    if row["role"] == "iothread":
        return "iothread"
    if "aio_poll" in names:
        return "vcpu-poll" if row["role"] == "vcpu" else "nested-poll"
    return "main-loop"

counts = runs.groupby("name").apply(lambda part: part.apply(verdict, axis=1).value_counts())
rows = len(runs)
""",
    "DuckDB": """
import duckdb
began = time.perf_counter()
found = duckdb.sql(f'''
  with events as (select *, row_number() over (order by time_ns) as n from '{path}'),
  pairs as (
    select *, sum(case event when 'schedule' then 1 else -1 end)
      over (partition by bh, callback order by n) as level
    from events where event in ('schedule', 'run') and bh != 0)
  select name, context,
    case when role = 'iothread' then 'iothread'
         when role = 'vcpu' and stack like '%aio_poll+%' then 'vcpu-poll'
         when stack like '%aio_poll+%' then 'nested-poll' else 'main-loop' end as verdict,
    count(*), median(time_ns - before)
  from (select *, lag(time_ns) over (partition by bh, callback order by n) as before from pairs)
  where event = 'run' group by all''').fetchall()
rows = len(found)
""",
}


def run(pairs: int) -> list[Row]:
    """The rows of the table; ``pairs`` is more than such long runs need."""
    with TemporaryDirectory() as folder:
        files = {}
        for size in SIZES:
            for suffix in ("parquet", "csv"):
                files[size, suffix] = Path(folder, f"{size}.{suffix}")
            record("daemon", size, files[size, "parquet"])
            _convert(files[size, "parquet"], files[size, "csv"])
        return _table(files, min(pairs, ROUNDS))


def _convert(parquet: Path, csv: Path) -> None:
    from qtrace.trace.convert import convert

    convert(parquet, csv)


def _table(files: dict[tuple[int, str], Path], rounds: int) -> list[Row]:
    small, large = SIZES
    wanted = [("ours", large, "parquet"), ("read_parquet", large, "parquet"),
              ("verdicts", large, "parquet"), ("DuckDB", large, "parquet"),
              ("ours", large, "csv"), ("read_csv", large, "csv"), ("ours", small, "parquet"),
              ("verdicts", small, "parquet"), ("groupby-apply", small, "parquet")]  # fmt: skip
    times: dict[tuple[str, int, str], list[float]] = {key: [] for key in wanted}
    peaks: dict[tuple[str, int, str], float] = dict.fromkeys(wanted, 0.0)
    for _ in range(rounds):
        for key in wanted:
            seconds, peak, _rows = measure(PROGRAMS[key[0]], files[key[1], key[2]])
            times[key].append(seconds)
            peaks[key] = max(peaks[key], peak)
    took = {key: statistics.median(found) for key, found in times.items()}

    def row(what: str, one: tuple[str, int, str], other: tuple[str, int, str], goal: str) -> Row:
        ratio = statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))
        return (
            what, f"{took[one]:.1f} s, {peaks[one]:.0f} MB", f"{ratio:.2f}",
            f"{other[0]} {took[other]:.1f} s, {peaks[other]:.0f} MB", goal,
        )  # fmt: skip

    ours, ours_csv = ("ours", large, "parquet"), ("ours", large, "csv")
    ours_small = ("ours", small, "parquet")
    per_event = (took[ours] / large) / (took[ours_small] / small)
    return [
        row("10 million events: Parquet to verdicts and all lints", ours,
            ("read_parquet", large, "parquet"), "at most 3, under 2 GB"),
        row("the same from CSV", ours_csv, ("read_csv", large, "csv"), "at most 1.5"),
        row("10 million events: verdicts and waits, beside SQL", ("verdicts", large, "parquet"),
            ("DuckDB", large, "parquet"), "not behind"),
        row("1 million events: verdicts, beside groupby-apply", ("verdicts", small, "parquet"),
            ("groupby-apply", small, "parquet"), "not behind"),
        ("time per event, 10 million beside 1 million", f"{took[ours] / large * 1e6:.2f} us",
         f"{per_event:.2f}", f"{took[ours_small] / small * 1e6:.2f} us", "flat"),
    ]  # fmt: skip


def measure(program: str, path: Path, clock: str = "perf_counter") -> tuple[float, float, int]:
    """Seconds, the peak in MB, rows, of a program that sets ``began`` and ``rows``.

    Args:
        clock: of the module time; ``process_time`` where other work uses the processors.
    """
    text = (PRELUDE + program + EPILOGUE).replace("perf_counter", clock)
    done = subprocess.run(
        [sys.executable, "-c", text, str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, peak, rows = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, rows
