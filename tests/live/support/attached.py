"""A ``qtrace attach`` under test, driven as a script would drive it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtrace.lab.guest import Guest
from qtrace.lab.snapshot_jobs import save_round
from tests.limits import TIMEOUT_S

WATCHED = "snapshot_save_job_bh"


@dataclass
class Attached:
    """The process, and the line it announced itself with."""

    process: subprocess.Popen[str]
    announced: str

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, dict[str, Any], str]:
        """Send a signal; exit status, JSON report and stderr."""
        self.process.send_signal(number)
        return self.result()

    def result(self) -> tuple[int, dict[str, Any], str]:
        """Wait for its end; exit status, JSON report (empty when there is none) and stderr."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, json.loads(out) if out else {}, err


def attach_command(pid: int, *options: object) -> list[str]:
    return [sys.executable, "-m", "qtrace", "attach", "--pid", str(pid), *map(str, options),
            "--format", "json"]  # fmt: skip


@contextmanager
def attached(pid: int, *options: object, within: tuple[str, ...] = ()) -> Iterator[Attached]:
    """An attach whose probes are armed; ``within``: a command that starts it."""
    process = subprocess.Popen(
        [*within, *attach_command(pid, *options)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line.startswith("warning: "):  # of what probes cost on this kernel
            line = process.stderr.readline()
        assert line.startswith("recording"), line + process.stderr.read()
        yield Attached(process, line)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def refused(pid: int, *options: object) -> tuple[int, str]:
    """The exit status and stderr of an attach that must not start."""
    run = subprocess.run(
        attach_command(pid, *options), text=True, capture_output=True, timeout=TIMEOUT_S
    )
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    return run.returncode, run.stderr


def save(guest: Guest, rounds: int) -> None:
    for number in range(rounds):
        save_round(guest.qmp, f"save{number}")


def watched_half(report: dict[str, Any], name: str = WATCHED) -> dict[str, Any]:
    (half,) = [h for h in report["bottom_halves"] if h["name"] == name]
    return dict(half)


def is_running(pid: int) -> bool:
    """Neither stopped, traced nor gone."""
    status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return status in "RSD"


def expected_status(report: dict[str, Any]) -> int:
    """Of a recording without a finding: on a crowded host events may be lost, or a loop be away
    for long, and then it says so."""
    return 4 if report["lost_events"] or report["notes"] else 0


def wait_for(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
