"""A hunt and the hazards that it found, on real guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import find_qemu
from qtrace.lab.hazards import HAZARDS
from qtrace.lab.hazards.hazard import Setting
from qtrace.lab.hunt.cell import Build, Limits, run_cell
from qtrace.lab.hunt.cell_plan import plan
from qtrace.lab.hunt.hunting import find_qemu_img, make_disks

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.qemu


def hunt(tmp: Path, *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Its exit status, JSON and stderr."""
    ran = subprocess.run(
        [sys.executable, "-m", "qtrace", "lab", "hunt", *map(str, arguments), "--format", "json"],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp)}, capture_output=True, text=True,
    )  # fmt: skip
    return ran.returncode, json.loads(ran.stdout or "null"), ran.stderr


def test_a_cell_drives_its_guest_which_checks_what_it_reads_and_nothing_is_left(
    qemu_binary: Path, tmp_path: Path
) -> None:
    status, answer, err = hunt(
        tmp_path, "--qemu", qemu_binary, "--device", "ahci-waits", "--command", "stop",
        "--accel", "tcg", "--cell-time", "0.5s", "-o", tmp_path / "rows.csv",
    )  # fmt: skip
    assert status == 0, err
    (cell,) = answer["cells"]
    assert cell["outcome"] == "ok", cell
    assert cell["turns"] > 0
    assert cell["verified"] > 0
    assert cell["corrupt"] == 0
    assert cell["cell"] in (tmp_path / "rows.csv").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_what_this_machine_or_build_lacks_is_said(tmp_path: Path) -> None:
    status, _answer, err = hunt(tmp_path, "--device", "nvmee")
    assert status == 2
    assert "no device matches 'nvmee'" in err
    status, _answer, err = hunt(tmp_path, "--seed", "h0-00000000")
    assert status == 2
    assert "another version" in err


def test_a_device_that_the_build_does_not_have_is_skipped(tmp_path: Path) -> None:
    """None has what no QEMU knows."""
    build = Build(find_qemu(), "0", frozenset())
    (cell,) = plan([build], ["nvme"], ["stop"], (False,), ("tcg",))
    result = run_cell(cell, "qemu-img", Limits(0.5, tmp_path, None, False, lambda: False))
    assert (result.outcome, result.what) == ("skipped", "this build has no nvme")


@pytest.mark.kvm
def test_a_resize_while_the_guest_breaks_off_ide_transfers_aborts_qemu(
    qemu_binary: Path, tmp_path: Path
) -> None:
    make_disks(tmp_path, find_qemu_img())
    hazard = HAZARDS["ide-resize"]
    setting = Setting(
        qemu_binary, "kvm", False, hazard.seconds, tmp_path, None, None, lambda: False
    )
    found = hazard.attempt(setting)
    assert found.shown, found
    assert "ide_cancel_dma_sync" in found.facts["said"]
    assert "ended it in" in found.facts["core"]
