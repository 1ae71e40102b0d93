"""Unwinding: the first stack of a QEMU, and those that follow."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pairs import Row, qemus
from qtrace.lab.guest import Guest
from qtrace.lab.snapshot_jobs import save_round
from qtrace.process.hit import Hit
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording

SAVES = 50


def run(_pairs: int) -> list[Row]:
    """Per QEMU: the hits of real saves, unwound in a fresh process and then again."""
    rows = []
    for version, qemu in qemus():
        text = subprocess.run(
            [sys.executable, "-m", "benchmarks.first_stack", str(qemu)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        first, following = (float(word) for word in text.split())
        rows += [
            (f"{version}: first stack", f"{first * 1e3:.1f} ms", "-", "-", "at most 100 ms"),
            (f"{version}: a later one", f"{following * 1e6:.0f} us", "-", "-", "under 1 ms"),
        ]
    return rows


def _measure(qemu: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, Guest(qemu, firmware="idle") as guest:
        recording = start_recording(guest.pid, RecordingOptions(Path(folder, "trace.csv")))
        hits: list[Hit] = []
        for number in range(SAVES):
            save_round(guest.qmp, f"save{number}")
            hits += recording._probes.drain()
        took = []
        for hit in hits:
            if recording._rows._sites[hit.address].is_step:
                continue  # it has no stack
            began = time.perf_counter()
            recording._rows.rows(hit)
            took.append(time.perf_counter() - began)
        recording.stop("measured")
    # A schedule, a run and a call differ: each kind's first is still a first.
    print(max(took[:3]), statistics.median(took[3:]))


if __name__ == "__main__":
    _measure(Path(sys.argv[1]))
