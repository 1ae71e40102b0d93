"""The QEMUs that samples are recorded of."""

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
