"""The distribution's bcc is found by its own path; PyPI's program of that name is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import sys
from pathlib import Path
from qtrace.errors import QtraceError
from qtrace.record.ebpf import bcc_module
if {hide}:
    bcc_module.PREFIXES = (Path("/nonexistent"),)
    bcc_module.SYSTEM_PYTHON = "/nonexistent"
path = list(sys.path)
try:
    bcc = bcc_module.load_bcc()
    print(bcc.__version__, bcc_module.load_bcc() is bcc, hasattr(bcc, "BPF"), sys.path == path)
except QtraceError as error:
    print(type(error).__name__, "|", error.message, "|", error.remedy, "|", "bcc" in sys.modules)
"""


def load(*, hide: bool, python_path: Path | None = None) -> str:
    """Load bcc in a process of its own; ``hide`` takes the distribution's out of sight."""
    path = f"{ROOT}:{python_path}" if python_path else str(ROOT)
    run = subprocess.run(
        [sys.executable, "-c", LOAD.format(hide=hide)],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.bcc
def test_the_distributions_bcc_loads_and_the_search_path_stays() -> None:
    assert load(hide=False).endswith("True True True")


@pytest.mark.bcc
def test_the_distributions_bcc_is_taken_beside_another_program_of_that_name(tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the wrong one')")
    assert load(hide=False, python_path=tmp_path).endswith("True True True")


def test_another_program_of_that_name_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("")
    answer = load(hide=True, python_path=tmp_path)
    assert answer.startswith("RecorderUnavailable")
    assert "another program" in answer
    assert "apt-get install python3-bpfcc" in answer


def test_a_missing_bcc_names_its_package() -> None:
    answer = load(hide=True)
    assert answer.startswith("RecorderUnavailable")
    assert "apt-get install python3-bpfcc" in answer


def test_a_bcc_that_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("from . import libbcc")
    (package / "libbcc.py").write_text("raise OSError('libbcc.so.0: cannot open')")
    answer = load(hide=True, python_path=tmp_path)
    assert "libbcc.so.0" in answer
    assert answer.endswith("False")
