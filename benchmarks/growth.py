"""What an event of `--all` costs at 1 and at 10 million: the target, the recorder, the rows."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.pairs import Row, qemus
from benchmarks.qemu_img import run_bench
from qtrace.lab.block_load import bench_command, disk_image

# Five events each.
REQUESTS = (200_000, 2_000_000)
DISK_BYTES = 1 << 30


def run(_pairs: int) -> list[Row]:
    """A row for each QEMU and size."""
    rows: list[Row] = []
    for version, qemu in qemus():
        with tempfile.TemporaryDirectory() as folder:
            disk = disk_image(Path(folder), DISK_BYTES)
            for requests in REQUESTS:
                command = bench_command(qemu.with_name("qemu-img"), disk, requests, "-n")
                rows.append(_row(version, run_bench(command), Path(folder), command))
    return rows


def _row(version: str, bare: float, folder: Path, command: list[str]) -> Row:
    """``bare``: seconds that the command takes with nothing attached."""
    text = subprocess.run(
        [sys.executable, "-m", "benchmarks.one_recording", str(folder), *command],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    facts = json.loads(text)
    events = facts["events"]
    return (
        f"{version}: {events / 1e6:.1f} million events, {facts['lost']} lost",
        f"{(facts['took'] - bare) / events * 1e6:.2f} us each for the target",
        "-",
        f"recorder {facts['cpu'] / events * 1e6:.2f} us of CPU each, "
        f"{facts['cpu'] / facts['took']:.0%} of a core, {facts['rss_mb']:.0f} MB; then to Parquet "
        f"{facts['convert'] / events * 1e6:.2f} us each, {facts['rss_converted_mb']:.0f} MB",
        "flat; under 200 MB, under one core",
    )
