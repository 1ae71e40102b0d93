"""The parts know each other only as pyproject.toml says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_are_kept() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_contracts_see_the_linked_folders() -> None:
    modules = grimp.build_graph("qtrace").modules
    assert {m for m in modules if m.startswith("qtrace.analysis.")}
