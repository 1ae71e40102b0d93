"""scripts/beside_load: each processor is busy while a command runs, and free again afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.beside_load import busy

ROOT = Path(__file__).resolve().parents[2]
# What the command sees: where the script's other children may run, and whether they do.
LOOK = """
import json, os, pathlib
parent = os.getppid()
children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
print(json.dumps({int(c): [sorted(os.sched_getaffinity(int(c))), os.getpriority(os.PRIO_PROCESS,
      int(c)), pathlib.Path(f"/proc/{c}/stat").read_text().rpartition(")")[2].split()[0]]
      for c in children if int(c) != os.getpid()}))
"""


def beside_load(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.beside_load", *arguments],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip


def test_a_command_has_a_busy_neighbour_on_each_processor() -> None:
    run = beside_load("--times", "2", "--", sys.executable, "-c", LOOK)
    assert run.returncode == 0
    first, second = map(json.loads, run.stdout.splitlines())
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert first == second
    assert sorted(first.values()) == [[[n], nice, "R"] for n in sorted(os.sched_getaffinity(0))]
    assert not any(Path(f"/proc/{pid}").exists() for pid in first)
    assert "2 of 2 succeeded" in run.stderr


def test_one_failure_fails_all() -> None:
    run = beside_load("--times", "2", "--", "false")
    assert run.returncode == 1
    assert "0 of 2 succeeded" in run.stderr


def test_without_a_command_it_says_so() -> None:
    assert beside_load("--times", "2").returncode == 2


def test_they_end_whatever_happens() -> None:
    before = children()
    with pytest.raises(ZeroDivisionError):
        fail_beside(before)
    assert children() == before


def fail_beside(before: set[str]) -> None:
    with busy() as number:
        assert len(children() - before) == number
        _ = 1 / 0


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
