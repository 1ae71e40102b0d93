"""What a command does not import: it would cost each of its users, each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.live.support.attached import attached, save

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


def libraries_of(pid: int) -> set[str]:
    """Which of ``HEAVY`` a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in HEAVY if f"/{name}/" in maps}


@pytest.mark.bpf
@pytest.mark.parametrize(("options", "kept"), [((), set()), (("--all",), {"numpy"})])
def test_what_finds_the_places_of_the_probes_is_gone_while_it_records(
    options: tuple[str, ...], kept: set[str]
) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        # Who looks at a build for the first time reads its code.
        imported_by("inspect", "--pid", str(guest.pid))
        with attached(guest.pid, *options) as attach:
            save(guest, 1)
            tasks = Path(f"/proc/{attach.process.pid}/task").glob("*/children")
            (child,) = [int(pid) for task in tasks for pid in task.read_text().split()]
            assert libraries_of(attach.process.pid) == kept
            assert libraries_of(child) == kept


def test_a_look_at_a_qemu_that_was_looked_at_before_takes_no_numpy_and_no_disassembler() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        look = ("inspect", "--pid", str(guest.pid))
        imported_by(*look)
        imported = imported_by(*look)
    assert "rich" in imported
    assert not imported & HEAVY
