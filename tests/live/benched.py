"""qemu-img bench under ``qtrace run --all``, and an independent count of the same run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from qtrace.target.elf import Elf
from qtrace.target.symbols import load_symbols
from qtrace.trace.reader import read_trace

# A prime number of requests: no batch divides it. qemu_bh_cancel() is not among the functions:
# its first instruction takes no probe, and bpftrace counts zero without a word.
REQUESTS = 3001
FUNCTIONS = (
    "aio_bh_call", "qemu_bh_schedule", "qemu_bh_schedule_idle", "aio_bh_schedule_oneshot_full",
    "qemu_bh_delete", "aio_co_schedule", "aio_co_reschedule_self",
)  # fmt: skip
TIMEOUT_S = 100


def bench_command(image: Path, disk: Path, *options: str, requests: int = REQUESTS) -> list[str]:
    return [str(image), "bench", "-f", "raw", "-t", "none", *options, "-c", str(requests),
            "-d", "32", "-s", "4096", str(disk)]  # fmt: skip


def make_disk(folder: Path) -> Path:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    return disk


def qtrace_run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, JSON report and stderr of ``qtrace run``."""
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "run", "--format", "json", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, json.loads(run.stdout) if run.stdout else {}, run.stderr


def counted(trace: Path) -> Counter[str]:
    """Rows of each kind."""
    return Counter(read_trace(trace).frame["event"].astype(str))


def frame_of(trace: Path) -> pd.DataFrame:
    return read_trace(trace).frame


def counted_by_bpftrace(image: Path, command: list[str]) -> Counter[str]:
    """Entries of the event loop's functions while a command runs, as bpftrace counts them."""
    symbols = load_symbols(Elf(image))
    there = [name for name in FUNCTIONS if symbols.address(name)]
    probes = " ".join(f'uprobe:{image}:{f} {{ @["{f}"] = count(); }}' for f in there)
    run = subprocess.run(
        ["bpftrace", "-e", probes, "-c", " ".join(command)],
        capture_output=True, text=True, check=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    found = re.findall(r"@\[(\w+)\]: (\d+)", run.stdout)
    return Counter({name: int(count) for name, count in found})
