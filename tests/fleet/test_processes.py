"""Recordings read by processes of this machine: the bytes of one, also when some are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qtrace.analysis.fleet import read_table, survey
from qtrace.trace.stream import HEADER_LIMIT
from tests.fleet.processes import ROOT, fleet
from tests.unit.fleets import recordings, saves

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


# A row of so many bytes, in an address space that has no room for it.
LONG, ROOM = 5 << 28, 2 << 30
LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, ({ROOM}, {ROOM}))
sys.argv[0] = "qtrace"
runpy.run_module("qtrace", run_name="__main__")
"""


def test_a_recording_too_large_for_a_worker_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    folder, table = recordings(tmp_path / "traces", 2), tmp_path / "summary.parquet"
    huge = saves(folder / "huge.csv", 2)
    *_, row, _end = huge.read_bytes().splitlines(keepends=True)
    with huge.open("ab") as file:
        file.write(row * (HEADER_LIMIT // len(row) + 1))
        # The last one has no end for long.
        file.truncate(LONG)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "fleet", str(folder), "-o", str(table), "--processes", "1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (4, "")
    rows = read_table(table)
    assert [row.summary is None for row in rows] == [False, False, True]
    assert rows[2].error.endswith("not enough memory to analyse it")
    assert rows[2].remedy == "give the workers more memory"


def test_the_command_writes_the_bytes_of_one_process(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "traces", 8)
    tables = [tmp_path / "serial.parquet", tmp_path / "processes.parquet"]
    survey([str(folder)], tables[0])
    done = fleet(str(folder), "-o", str(tables[1]), "--processes", "2")
    assert done.returncode == 1, done.stderr
    assert tables[0].read_bytes() == tables[1].read_bytes()
