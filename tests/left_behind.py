"""A run of the tests leaves nothing: no file in the checkout but caches, and no process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

# In the environment of every process that a run starts, and of theirs; its value is the run's.
MARK = "QTRACE_TEST_RUN"
# What tools keep for their next run.
CACHES = frozenset((
    "__pycache__/", ".cache/", ".grimp_cache/", ".hypothesis/", ".import_linter_cache/",
    ".mypy_cache/", ".pytest_cache/", ".ruff_cache/",
))  # fmt: skip
# Guards of a gdb or of a guest that was killed end by themselves soon after it.
LIMIT_S = 30.0


class LeftBehind:
    """A plugin of the process that decides how a run ends; pytest-xdist's workers do not."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._run = uuid.uuid4().hex
        self._known = new_files(root)
        self._left: list[str] = []
        os.environ[MARK] = self._run

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._left = [f"file: {name}" for name in sorted(new_files(self._root) - self._known)]
        for pid, command in await_end(self._run).items():
            self._left.append(f"process {pid}, ended by now: {command}")
            os.kill(pid, signal.SIGKILL)
        if self._left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._left:
            terminalreporter.section("left behind by the tests", red=True)
            for line in self._left:
                terminalreporter.line(line)


def new_files(root: Path) -> set[str]:
    """What is neither git's nor a cache; empty where this is no clone."""
    if not (root / ".git").exists():
        return set()
    said = subprocess.run(
        ["git", "status", "--porcelain", "--ignored", "-z"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = {entry[3:] for entry in said.split("\0") if entry[:2] in ("??", "!!")}
    return {name for name in names if Path(name).name + "/" not in CACHES}


def await_end(run: str) -> dict[int, str]:
    """The command line of each process of a run that does not end in time."""
    deadline = time.monotonic() + LIMIT_S
    while (left := processes_of(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def processes_of(run: str) -> dict[int, str]:
    """Pid and command line of what a run has started and what lives; not of this process."""
    mark = f"{MARK}={run}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            # The environment of one that has ended is empty.
            if pid != os.getpid() and mark in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                found[pid] = " ".join(word.decode(errors="replace") for word in words)
        except OSError:
            continue
    return found
