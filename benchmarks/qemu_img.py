"""The load of two benchmarks: ``qemu-img bench``."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

TOOK = re.compile(r"Run completed in ([\d.]+) seconds")


def disk_image(folder: Path) -> Path:
    """A sparse raw image of 1 GiB."""
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    return disk


def bench_command(image: Path, file: str, requests: int, *options: str) -> list[str]:
    """So many reads of 4 KiB, 32 at a time. ``image``: qemu-img; ``file``: a path or a URL."""
    return [str(image), "bench", "-f", "raw", "-t", "none", *options, "-c", str(requests),
            "-d", "32", "-s", "4096", file]  # fmt: skip


def seconds(output: str) -> float:
    """What it says it took."""
    found = TOOK.search(output)
    if found is None:
        raise RuntimeError(output)
    return float(found[1])


def run_bench(command: list[str]) -> float:
    """Run it, or a tracer that passes its output through; what it says it took."""
    run = subprocess.run(command, capture_output=True, text=True)
    try:
        return seconds(run.stdout)
    except RuntimeError:
        raise RuntimeError(run.stdout + run.stderr) from None
