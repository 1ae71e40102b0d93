"""``qtrace autopsy`` of live QEMUs, and what ``qtrace inspect --autopsy`` says of the file."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qtrace.autopsy.archive import Autopsy, Writer
from qtrace.autopsy.kept_memory import guest_memory
from qtrace.errors import AutopsyUnreadable, OutputExists, OutputFailed
from qtrace.host.descriptors import Descriptors
from qtrace.lab.guest import Guest, find_qemu
from qtrace.machine.memory import PAGE
from qtrace.process.core_file import CoreFile
from tests.faults.test_all_limits import small_disk
from tests.limits import TIMEOUT_S
from tests.live.support.counted import own_copy
from tests.live.support.dead_fuse import locked_memory_map
from tests.live.support.gdb_cases import STRANDED, Hung
from tests.live.support.gdb_session import core, gdb
from tests.live.support.ptraced import until

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


def begin(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qtrace", *map(str, words)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def read_back(path: Path) -> tuple[int, dict[str, Any]]:
    run = qtrace("inspect", "--autopsy", path, "--format", "json")
    return run.returncode, json.loads(run.stdout)


@dataclass(frozen=True)
class Taken:
    """An autopsy of a QEMU that hangs, with its core."""

    pid: int
    path: Path
    core: Path
    said: str


@pytest.fixture(scope="module")
def taken(hung: Hung, tmp_path_factory: pytest.TempPathFactory) -> Taken:
    pid = hung(find_qemu(), "tcg", "live").pid
    folder = tmp_path_factory.mktemp("autopsy")
    path, core = folder / "hung.autopsy", folder / "hung.core"
    run = qtrace("autopsy", "--pid", pid, "-o", path, "--core", core)
    assert run.returncode == 0, run.stderr
    return Taken(pid, path, core, run.stdout)


def stuck_sentence(document: dict[str, Any]) -> str:
    (finding,) = [one for one in document["findings"] if one["verdict"] == "stuck"]
    return str(finding["sentence"])


def test_of_a_hung_qemu_the_file_says_what_inspect_said_and_has_no_guest_ram(taken: Taken) -> None:
    pid, path = taken.pid, taken.path
    assert taken.said.startswith(f"stuck: the main loop does not run: {pid} (main) waits in bdrv")
    assert f"qtrace inspect --autopsy {path}" in taken.said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size < 20_000_000
    status, document = read_back(path)
    assert (status, document["verdict"]) == (1, "stuck")
    sentence = stuck_sentence(document)
    assert sentence.startswith(f"the main loop does not run: {pid} (main) waits in bdrv")
    assert STRANDED in sentence
    said = qtrace("inspect", "--autopsy", path)
    assert (said.returncode, f"stuck: {sentence}" in said.stdout) == (1, True)
    found = Autopsy(path)
    assert found.end is not None
    assert found.end["took_s"] < 30
    assert {"threads/stack", "again/threads/stat", "proc/maps", "descriptors.json"} <= set(
        found.members
    )
    assert found.members["core"] == taken.core.read_bytes()
    file = CoreFile(taken.core)
    assert file.pid == pid
    assert pid in file.registers
    ram = guest_memory(Path(f"/proc/{pid}/smaps").read_text())
    assert ram
    assert sum(end - start for start, end in ram) >= 1 << 20
    for start, end in ram:
        assert not any(file.read(page, 1) for page in range(start, end, PAGE))


@pytest.mark.gdb
def test_gdb_reads_its_core_with_the_names_of_libraries_functions(taken: Taken) -> None:
    assert stat.S_IMODE(taken.core.stat().st_mode) == 0o600
    shown = gdb(core(taken.pid, find_qemu(), taken.core), "bt", "info threads", "aio why")
    for function in ("ppoll", "bdrv_drain_all_begin", "qemu_cleanup"):
        assert re.search(rf"^#\d+ .* in (__GI_)?_*{function}\b", shown, re.MULTILINE), shown
    assert shown.count("LWP") == len(CoreFile(taken.core).registers)
    assert "libc.so.6" not in shown.split("No symbol")[0] or "?? () from" not in shown
    assert f"the main loop does not run: {taken.pid}" in shown


def test_inspect_says_of_its_core_what_it_said_of_the_process(taken: Taken) -> None:
    run = qtrace("inspect", "--core", taken.core, "--format", "json")
    # One look cannot show whether it stays so.
    assert run.returncode == 4, run.stderr
    of_core, of_process = json.loads(run.stdout), read_back(taken.path)[1]
    cause = stuck_sentence(of_process).partition(" (main)")[2].partition(" < ")[0]
    assert cause in stuck_sentence(of_core)
    # Names of threads, and so of IOThreads, are in no core: contexts may stand in another order.
    assert {c["ctx"] for c in of_core["contexts"]} == {c["ctx"] for c in of_process["contexts"]}
    jobs = [[(job["id"], job["stack"]) for job in one["jobs"]] for one in (of_core, of_process)]
    assert jobs[0] == jobs[1] != []
    nodes = [[n["name"] for n in one["block"]["nodes"]] for one in (of_core, of_process)]
    assert nodes[0] == nodes[1]
    coroutines = [one["block"]["coroutines"]["free"] for one in (of_core, of_process)]
    assert coroutines[0] == coroutines[1]


def test_several_at_once_disturb_each_other_in_nothing_and_one_file_is_one_s(
    guest: Guest, tmp_path: Path
) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    begun = [begin("autopsy", "--pid", guest.pid, "-o", path) for path in (same, same, other)]
    errors = [run.communicate(timeout=TIMEOUT_S)[1] for run in begun]
    one, two, third = (run.returncode for run in begun)
    assert ({one, two}, third) == ({0, 2}, 0), errors
    assert sum(f"error: {same} exists already" in err for err in errors) == 1
    for path in (same, other):
        assert Autopsy(path).end is not None
        assert read_back(path)[1]["verdict"] in ("clear", "inconclusive")


def test_on_a_full_disk_what_was_taken_is_readable(taken: Taken, tmp_path: Path) -> None:
    with small_disk(tmp_path, "128k") as place:
        path = place / "full.autopsy"
        run = qtrace("autopsy", "--pid", taken.pid, "-o", path)
        assert run.returncode == 3
        assert f"error: cannot write {path}: No space left on device" in run.stderr
        assert "remedy: make room there" in run.stderr
        said = qtrace("inspect", "--autopsy", path)
    assert said.returncode == 1
    assert f"stuck: {stuck_sentence(read_back(taken.path)[1])}" in said.stdout
    assert "it is cut off" in said.stderr


def test_it_waits_until_qmp_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "silent.autopsy"
    with Guest(find_qemu(), "tcg", firmware="idle") as own:
        name = str(own.second_qmp_socket)
        run = begin("autopsy", "--pid", own.pid, "-o", path, "--when-silent", "1s", "--qmp", name)
        until(lambda: Descriptors(own.pid).connected_to(name), "the first question")
        os.kill(own.pid, signal.SIGSTOP)
        _out, err = run.communicate(timeout=TIMEOUT_S)
        os.kill(own.pid, signal.SIGCONT)
        assert own.qmp.command("query-status")["status"] == "running"
    assert (run.returncode, f"QMP at {name} has not answered for 1 s" in err) == (0, True), err
    assert err.startswith(f"waiting until process {own.pid} has not answered QMP for 1 s")
    assert Autopsy(path).about["why"] == f"QMP at {name} has not answered for 1 s"


@pytest.mark.fuse
def test_of_a_qemu_whose_memory_nobody_can_read_there_is_all_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "locked.autopsy"
    # Of a file of its own: no uprobe in it keeps others waiting.
    copy = own_copy(find_qemu(), tmp_path)
    with locked_memory_map(copy, tmp_path) as (own, _file):
        run = qtrace("autopsy", "--pid", own.pid, "-o", path, "--when-stuck", "1s")
    found = Autopsy(path)
    assert run.returncode == 0
    assert found.end is not None
    assert "the kernel lets nobody read" in found.about["why"]
    whose = f"/proc/{own.pid}/mem"
    (why,) = [what for what in found.end["missing"] if what.startswith("memory: ")]
    assert f"the kernel lets nobody read {whose}" in why
    assert "sleeps uninterruptibly in munmap" in why
    assert {"threads/stack", "again/threads/stat", "descriptors.json"} <= set(found.members)
    # Only what needs its memory is left out, and nobody waits for that twice.
    assert not {"inspect.json", "core", "trace.csv"} & set(found.members)
    said = qtrace("inspect", "--autopsy", path)
    assert (said.returncode, "inconclusive: there are no looks in it" in said.stdout) == (4, True)
    assert why in said.stderr


def test_silence_that_would_show_nothing_is_refused(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "x"

    def refused(*options: object) -> tuple[int, str]:
        run = qtrace("autopsy", "--pid", guest.pid, "-o", path, "--when-silent", "1s", *options)
        assert not path.exists()
        return run.returncode, run.stderr

    status, err = refused("--qmp", guest.qmp_socket)
    assert (status, f"serves process {os.getpid()}" in err) == (3, True), err
    assert "--when-stuck" in err
    status, err = refused("--qmp", tmp_path / "none")
    assert (status, "cannot be connected" in err) == (3, True), err
    status, err = refused()
    assert (status, "--qmp" in err) == (2, True)
    with Guest(find_qemu(), "tcg", firmware="idle") as other:
        status, err = refused("--qmp", other.second_qmp_socket)
        assert (status, f"is not process {guest.pid}'s" in err) == (3, True), err
        assert f"process {other.pid} (" in err


def test_a_qemu_that_ends_while_it_is_asked_has_ended(tmp_path: Path) -> None:
    with Guest(find_qemu(), "tcg", firmware="idle") as own:
        name = str(own.second_qmp_socket)
        run = begin("autopsy", "--pid", own.pid, "-o", tmp_path / "x", "--when-silent", "5m",
                    "--qmp", name)  # fmt: skip
        until(lambda: Descriptors(own.pid).connected_to(name), "the first question")
        os.kill(own.pid, signal.SIGKILL)
        _out, err = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, f"process {own.pid} has ended" in err) == (3, True), err


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
