"""What ``qemu-img bench`` says that it took."""

from __future__ import annotations

import re
import subprocess

TOOK = re.compile(r"Run completed in ([\d.]+) seconds")


def seconds(output: str) -> float:
    """Read from what it printed."""
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
