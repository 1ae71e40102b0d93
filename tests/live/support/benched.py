"""qemu-img bench under ``qtrace run --all``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from qtrace.trace.reader import read_trace
from tests.limits import TIMEOUT_S

# A prime number: no batch divides it.
REQUESTS = 3001


def qtrace_run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, JSON report and stderr of ``qtrace run``."""
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "run", "--format", "json", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, json.loads(run.stdout) if run.stdout else {}, run.stderr


def ended_well(status: int, report: dict[str, Any]) -> bool:
    """Status 0; or 4 with nothing lost, as the notes of many threads that schedule one bottom half
    cross: of one schedule among thousands it may not be told how it ended."""
    unsure = sum(half["verdicts"].get("inconclusive", 0) for half in report["bottom_halves"])
    return (status, unsure) == (0, 0) or (status, unsure, report["lost_events"]) == (4, 1, 0)


def counted(trace: Path) -> Counter[str]:
    """Rows of each kind."""
    return Counter(read_trace(trace).frame["event"].astype(str))


def frame_of(trace: Path) -> pd.DataFrame:
    return read_trace(trace).frame
