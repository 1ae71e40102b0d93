"""What a command does not import: it would cost each of its users, each time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qtrace.lab.guest import Guest, find_qemu

pytestmark = pytest.mark.qemu

# Whoever searches all of a QEMU's code, or a recording, needs them.
HEAVY = {"capstone", "numpy", "pandas", "pyarrow"}


def imported_by(*arguments: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qtrace", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_a_look_at_a_qemu_that_was_looked_at_before_takes_no_numpy_and_no_disassembler() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        look = ("inspect", "--pid", str(guest.pid))
        imported_by(*look)
        imported = imported_by(*look)
    assert "rich" in imported
    assert not imported & HEAVY
