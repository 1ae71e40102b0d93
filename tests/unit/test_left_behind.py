"""A run of tests that leaves a file or a process fails, says what, and ends the process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import left_behind

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """
from pathlib import Path
from tests import left_behind
left_behind.LIMIT_S = 0.5
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(left_behind.LeftBehind(Path(__file__).parent))
"""
CLEAN = "def test_nothing():\n    pass\n"
DIRTY = """
import subprocess
def test_file():
    open("core", "w").close()
def test_process():
    subprocess.Popen(["setsid", "sleep", "1000"], stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


def run(folder: Path, test: str, *options: str) -> tuple[int, str]:
    """Exit status and output of a pytest on one file, in a checkout of its own."""
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(test)
    own = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment.pop(left_behind.MARK, None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder, text=True, capture_output=True, env=environment | own,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    status, said = run(tmp_path, CLEAN)
    assert (status, "left behind" in said) == (0, False)


def test_what_is_left_is_named_once_ended_and_fails_the_run(tmp_path: Path) -> None:
    """It is the run that is judged, when all its workers are done."""
    status, said = run(tmp_path, DIRTY, "-p", "xdist", "--numprocesses", "2")
    assert status == 1
    assert "2 passed" in said
    assert said.count("file: core\n") == 1
    (pid,) = re.findall(r"^process (\d+), ended by now: sleep 1000$", said, re.MULTILINE)
    assert ended(int(pid))


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
