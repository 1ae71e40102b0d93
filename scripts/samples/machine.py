"""The QEMUs that samples are recorded of, and what belongs to a guest's command line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrace.lab.guest import find_qemu

ROOT = Path(__file__).resolve().parents[2]
UNPACKED = ROOT / ".cache" / "qemu-backports"
# A recording names the executable: this one lies where nobody's home is.
NEUTRAL = Path("/opt/qemu-10.0")

OLD = find_qemu()
NEW = NEUTRAL / "usr/bin/qemu-system-x86_64"
DISK_BYTES = 64 << 20


@contextmanager
def neutral_qemu() -> Iterator[None]:
    """The unpacked QEMU at a place that says nothing about this machine."""
    if not UNPACKED.exists():
        sys.exit("make qemus")
    made = not NEUTRAL.exists()
    if made:
        shutil.copytree(UNPACKED, NEUTRAL, symlinks=True)
    try:
        yield
    finally:
        if made:
            shutil.rmtree(NEUTRAL)


def disk(folder: Path) -> Path:
    """An empty image."""
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    return path


def bench(qemu: Path, requests: int, depth: int, *options: str) -> list[str]:
    """The command of a program that does block I/O as fast as it can; the image comes last."""
    program = str(qemu.with_name("qemu-img"))
    sizes = ["-c", str(requests), "-d", str(depth), "-s", "4096"]
    return [program, "bench", "-f", "raw", "-t", "none", *sizes, *options]
