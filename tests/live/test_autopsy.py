"""``qtrace autopsy`` of live QEMUs, and what ``qtrace inspect --autopsy`` says of the file."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtrace.autopsy.archive import Autopsy, Writer
from qtrace.autopsy.kept_memory import guest_memory
from qtrace.errors import AutopsyUnreadable, OutputExists, OutputFailed
from qtrace.lab.guest import Guest, find_qemu
from qtrace.machine.memory import PAGE
from qtrace.process.core_file import CoreFile
from tests.limits import TIMEOUT_S
from tests.live.support.gdb_cases import STRANDED, Hung

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(find_qemu(), "tcg", firmware="idle") as started:
        yield started


def qtrace(*words: object) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", *map(str, words)],
        text=True, capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    return run


def read_back(path: Path) -> tuple[int, dict[str, Any]]:
    run = qtrace("inspect", "--autopsy", path, "--format", "json")
    return run.returncode, json.loads(run.stdout)


def test_of_a_hung_qemu_the_file_says_what_inspect_said_and_has_no_guest_ram(
    hung: Hung, tmp_path: Path
) -> None:
    pid = hung(find_qemu(), "tcg", "live").pid
    path = tmp_path / "hung.autopsy"
    run = qtrace("autopsy", "--pid", pid, "-o", path)
    assert run.returncode == 0, run.stderr
    assert f"qtrace inspect --autopsy {path}" in run.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size < 20_000_000
    status, document = read_back(path)
    assert (status, document["verdict"]) == (1, "stuck")
    (finding,) = [one for one in document["findings"] if one["verdict"] == "stuck"]
    assert finding["sentence"].startswith(f"the main loop does not run: {pid} (main) waits in bdrv")
    assert STRANDED in finding["sentence"]
    said = qtrace("inspect", "--autopsy", path)
    assert (said.returncode, f"stuck: {finding['sentence']}" in said.stdout) == (1, True)
    found = Autopsy(path)
    assert found.end is not None
    assert found.end["took_s"] < 30
    assert {"threads/stack", "again/threads/stat", "proc/maps", "descriptors.json"} <= set(
        found.members
    )
    core = tmp_path / "core"
    core.write_bytes(found.members["core"])
    file = CoreFile(core)
    assert pid in file.registers
    ram = guest_memory(Path(f"/proc/{pid}/smaps").read_text())
    assert ram
    assert sum(end - start for start, end in ram) >= 1 << 20
    for start, end in ram:
        assert not any(file.read(page, 1) for page in range(start, end, PAGE))


def test_a_qemu_that_is_killed_meanwhile_leaves_what_was_taken(tmp_path: Path) -> None:
    path = tmp_path / "killed.autopsy"
    with Guest(find_qemu(), "tcg", firmware="idle") as own:
        words = [sys.executable, "-m", "qtrace", "autopsy", "--pid", str(own.pid), "-o", str(path)]
        with subprocess.Popen(words, text=True, stderr=subprocess.PIPE) as run:
            while not path.exists():
                assert run.poll() is None
            os.kill(own.pid, signal.SIGKILL)
            _out, err = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, "Traceback" in err) == (0, False)
    found = Autopsy(path)
    assert found.end is not None
    assert found.end["missing"]
    assert qtrace("inspect", "--autopsy", path).returncode in (0, 4)


def test_a_file_that_is_there_is_kept_and_usage_is_told(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_text("mine")
    run = qtrace("autopsy", "--pid", guest.pid, "-o", path)
    assert (run.returncode, path.read_text()) == (2, "mine")
    run = qtrace("autopsy", "--pid", guest.pid, "-o", tmp_path / "no" / "file")
    assert (run.returncode, "cannot write" in run.stderr) == (3, True)
    run = qtrace("inspect", "--autopsy", path, "--pid", guest.pid)
    assert run.returncode == 2


def test_foreign_damaged_and_cut_off_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.autopsy"
    writer = Writer(path, False, {"target": {"pid": 1}})
    writer.add("inspect.txt", os.urandom(200_000))
    writer.finish({"missing": [], "status": 0})
    whole = path.read_bytes()
    assert Autopsy(path).end == {"missing": [], "status": 0}
    with pytest.raises(OutputExists):
        Writer(path, False, {})
    path.write_bytes(whole[:150_000])
    assert Autopsy(path).end is None
    for data in (b"", b"no archive", whole[:8], os.urandom(4096)):
        path.write_bytes(data)
        with pytest.raises(AutopsyUnreadable):
            Autopsy(path)
    with pytest.raises(AutopsyUnreadable, match="there is no"):
        Autopsy(tmp_path / "nothing")
    full = Path("/dev/full")
    with pytest.raises((OutputFailed, OutputExists)):
        Writer(full, False, {})
