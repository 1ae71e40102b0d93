"""A ``qtrace steer`` or ``reroute`` under test, driven as a script would drive it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qtrace.lab.guest import Guest
from qtrace.lab.snapshot_jobs import save_round
from tests.limits import TIMEOUT_S

WATCHED = "snapshot_save_job_bh"
ROUNDS_LIMIT = 2000
ARMED = ("steering", "rerouting")


@dataclass
class Experimenting:
    """The process of an experiment."""

    process: subprocess.Popen[str]

    def result(self) -> tuple[int, dict[str, Any], str]:
        """Wait for its end; exit status, JSON (empty when there is none) and stderr."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert "Traceback" not in err
        return self.process.returncode, json.loads(out) if out else {}, err

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, dict[str, Any], str]:
        self.process.send_signal(number)
        return self.result()

    def save_until_done(self, guest: Guest) -> tuple[int, dict[str, Any], str]:
        """Snapshot rounds until the experiment has seen enough of them."""
        for number in range(ROUNDS_LIMIT):
            if self.process.poll() is not None:
                break
            save_round(guest.qmp, f"until{number}")
        return self.result()


@contextmanager
def started(command: str, pid: int, *options: object) -> Iterator[Experimenting]:
    """An experiment that may not be in force yet."""
    words = [sys.executable, "-m", "qtrace", command, "--pid", str(pid), "--bh", WATCHED,
             *map(str, options), "--format", "json"]  # fmt: skip
    with started_command(words) as experiment:
        yield experiment


@contextmanager
def started_command(words: list[str]) -> Iterator[Experimenting]:
    """Any command of qtrace, ended whatever happens."""
    process = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield Experimenting(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def in_force(command: str, pid: int, *options: object) -> Iterator[Experimenting]:
    """An experiment that is in force."""
    with started(command, pid, *options) as experiment:
        assert experiment.process.stderr is not None
        lines = []
        while not lines or not lines[-1].startswith(ARMED):
            lines.append(experiment.process.stderr.readline())
            assert lines[-1], lines
        yield experiment
