"""Recordings read by processes of this machine: the bytes of one, also when some are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qtrace.analysis.fleet import survey
from tests.fleet.processes import ROOT, fleet
from tests.unit.fleets import recordings

KILLING = """
import multiprocessing, os, signal, sys
from qtrace.analysis.fleet import Processes, survey

def kill(done, _all):
    if done == 3:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

if __name__ == "__main__":
    survey(sys.argv[1:2], sys.argv[2], Processes(2), progress=kill)
"""


def test_processes_that_are_killed_under_way_change_nothing(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "traces", 8)
    tables = [tmp_path / "serial.parquet", tmp_path / "killed.parquet"]
    survey([str(folder)], tables[0])
    command = [sys.executable, "-c", KILLING, str(folder), str(tables[1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_the_command_writes_the_bytes_of_one_process(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "traces", 8)
    tables = [tmp_path / "serial.parquet", tmp_path / "processes.parquet"]
    survey([str(folder)], tables[0])
    done = fleet(str(folder), "-o", str(tables[1]), "--processes", "2")
    assert done.returncode == 1, done.stderr
    assert tables[0].read_bytes() == tables[1].read_bytes()
