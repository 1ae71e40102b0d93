"""Who cannot move: stopped by a signal, held by a tracer, frozen by a cgroup of either version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.live_source import LiveSource
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S
from tests.live.support.inspecting import inspect
from tests.live.support.pausing import held

SLEEPS = "import threading, time; threading.Thread(target=time.sleep, args=[99]).start(); print()"
# What one sees who sees no cgroups: a container, say.
BLIND = """
import subprocess, sys
subprocess.run(["umount", "-l", "-R", "/sys/fs/cgroup"], check=True)
from qtrace.process.live_source import LiveSource
from qtrace.process.process import Process
pid = int(sys.argv[1])
print(LiveSource(Process(pid)).held(pid))
"""


@pytest.fixture
def process() -> Iterator[int]:
    """Sleeps, in two threads.

    In a process group of its own, whose parent is in another one of the session: SIGTSTP and its
    like stop nobody in an orphaned group, as ours may be (setpgid(2)).
    """
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE, process_group=0
    ) as started:
        assert started.stdout is not None
        try:
            started.stdout.readline()
            yield started.pid
        finally:
            started.kill()
            # Whoever froze it has let it go by now.


class Hierarchy:
    """cgroup v2, or v1's freezer, where it is mounted."""

    def __init__(self, version: int) -> None:
        self.version = version
        kind, option = ("cgroup2", "") if version == 2 else ("cgroup", "freezer")
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        found = [m[1] for m in mounts if m[2] == kind and (not option or option in m[3].split(","))]
        if not found:
            pytest.skip(f"cgroup v{version} is not mounted here")
        self.root = Path(found[0])

    @contextmanager
    def frozen(self, pid: int, depth: int) -> Iterator[str]:
        """A process in a cgroup that is frozen, ``depth`` levels further up."""
        name = f"qtrace-test-{os.getpid()}"
        top = self.root / name
        folders = [top, *(top.joinpath(*["inner"] * n) for n in range(1, depth + 1))]
        for folder in folders:
            folder.mkdir()
        try:
            (folders[-1] / "cgroup.procs").write_text(str(pid))
            self._freeze(top, True)
            yield f"/{name}"
        finally:
            self._freeze(top, False)
            (self.root / "cgroup.procs").write_text(str(pid))
            for folder in reversed(folders):
                _until(lambda folder=folder: _removed(folder), "the cgroup's end")  # type: ignore[misc]

    def _freeze(self, folder: Path, wanted: bool) -> None:
        if self.version == 2:
            (folder / "cgroup.freeze").write_text(str(int(wanted)))
            events = folder / "cgroup.events"
            _until(lambda: f"frozen {int(wanted)}" in events.read_text(), "the freeze")
            return
        state = folder / "freezer.state"
        state.write_text("FROZEN" if wanted else "THAWED")
        _until(lambda: state.read_text().strip() == ("FROZEN" if wanted else "THAWED"), "it")


versions = pytest.mark.parametrize("version", [1, 2])


@versions
@pytest.mark.parametrize("depth", [0, 2], ids=["its own", "one around it"])
def test_the_cgroup_that_froze_it_is_named(process: int, version: int, depth: int) -> None:
    source = LiveSource(Process(process))
    assert source.held(process) == ""
    with Hierarchy(version).frozen(process, depth) as cgroup:
        assert source.held(process) == f"frozen by its cgroup {cgroup}"
    _until(lambda: source.held(process) == "", "the thaw")


@versions
def test_without_a_sight_of_cgroups_the_wait_channel_shows_it(process: int, version: int) -> None:
    with Hierarchy(version).frozen(process, 0):
        seen = subprocess.run(
            ["unshare", "-m", sys.executable, "-c", BLIND, str(process)],
            text=True, capture_output=True,
        )  # fmt: skip
    assert seen.stdout.strip() == "frozen, as its wait channel shows", seen.stderr


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN])
def test_the_signal_that_stopped_it_is_named(process: int, number: signal.Signals) -> None:
    source = LiveSource(Process(process))
    os.kill(process, number)
    # Until the last thread has stopped it does not show which one it was.
    _until(lambda: source.held(process) == f"stopped by a signal ({number.name})", "the stop")
    # Its parent takes note of it, and the kernel forgets which one it was.
    os.waitpid(process, os.WUNTRACED)
    assert source.held(process) == "stopped by a signal"
    os.kill(process, signal.SIGCONT)
    _until(lambda: source.held(process) == "", "its going on")


@pytest.mark.qemu
@versions
def test_a_frozen_qemu_is_not_judged(version: int) -> None:
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        Hierarchy(version).frozen(guest.pid, 1) as cgroup,
    ):
        status, document, _err = inspect("--pid", guest.pid)
    assert (status, document["verdict"], document["findings"]) == (4, "inconclusive", [])
    assert document["held"] == f"frozen by its cgroup {cgroup}"
    assert f"the process is frozen by its cgroup {cgroup}: " in document["unclear"][0]


@pytest.mark.qemu
def test_a_vcpu_that_somebody_traces_is_told() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        (cpu,) = guest.qmp.command("query-cpus-fast")
        with held([cpu["thread-id"]]):
            status, document, _err = inspect("--pid", guest.pid)
        assert (status, document["verdict"]) == (4, "inconclusive")
        name = Path("/proc/self/comm").read_text().strip()
        tracer = f"process {os.getpid()} ({name})"
        assert document["held"] == (
            f"held in part: thread {cpu['thread-id']} held by a tracer, {tracer}"
        )
        assert inspect("--pid", guest.pid)[0] == 0


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        # What was in it is still on its way out.
        return False
    return True


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)
