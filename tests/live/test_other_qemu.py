"""A QEMU of another build, in a chroot of its own: QTRACE_QEMU11 names what starts it.

Made for 11.1: its event loops, the main one's nested polls too, wait in io_uring_enter(), and it
jumps to the function that takes the BQL.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.lab.guest import Accelerator, Guest
from qtrace.qemu.aio.calibration import calibrate
from tests.conftest import OTHER_QEMU, program_of
from tests.live.support.gdb_cases import STRANDED
from tests.live.support.gdb_session import Target, core_of, gdb
from tests.live.support.gdb_session import core as target_of
from tests.live.support.hung import JOB, guest_with_sleeping_job, hung_guest
from tests.live.support.inspecting import context, functions, inspect, thread
from tests.live.test_kernel_core import ANY_SIZE, kernel_cores

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not OTHER_QEMU, reason="QTRACE_QEMU11 names no other QEMU"),
]

QEMU = Path(OTHER_QEMU)
CORES = 5


@pytest.fixture(scope="module")
def root() -> str:
    """The folder that is the root directory for it; empty when it has this machine's."""
    return str(program_of(OTHER_QEMU)).removesuffix("/usr/bin/qemu-system-x86_64")


@pytest.fixture(scope="module")
def hung() -> Iterator[Guest]:
    with hung_guest(QEMU, "tcg") as guest:
        yield guest


def test_every_fact_is_found_in_its_code() -> None:
    layout = calibrate(ModuleDisassembly(Module(Elf(program_of(OTHER_QEMU)), 0)))
    assert layout.missing() == []


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_an_idle_one_is_clear_and_its_loops_wait(accel: Accelerator) -> None:
    with guest_with_sleeping_job(QEMU, accel) as guest:
        status, document, _err = inspect("--pid", guest.pid)
        open_fds = {int(fd) for fd in os.listdir(f"/proc/{guest.pid}/fd")}
        (iothread,) = guest.qmp.command("query-iothreads")
    assert (status, document["verdict"], document["missing"]) == (0, "clear", [])
    assert document["bql"] == {"known": True, "holder": None}
    own = context(document, "iothread:iot0")
    assert own["tid"] == iothread["thread-id"]
    assert thread(document, own["tid"])["polls"][0]["context"] == "iothread:iot0"
    notified = set()
    for one in document["contexts"]:
        assert {handler["fd"] for handler in one["handlers"]} <= open_fds
        assert not any(handler["deleted"] for handler in one["handlers"])
        # aio_context_new() makes the context's own notifier a handler, whose argument lies in it.
        distances = [int(h["opaque"], 16) - int(one["ctx"], 16) for h in one["handlers"]]
        notified.add(next(distance for distance in distances if 0 < distance < 0x400))
    assert len(notified) == 1


def check(document: dict[str, object], pid: int) -> None:
    """What a look at the hung one shows, alive or dead."""
    finding = next(f for f in document["findings"] if f["verdict"] == "stuck")  # type: ignore[attr-defined]
    assert finding["tid"] == pid
    assert finding["waits_in"][0] == "bdrv_drain_all_begin"
    assert (finding["polls"], finding["bottom_halves"]) == ("main", [STRANDED])
    main = thread(document, pid)
    assert main["complete"]
    assert {"aio_poll", "qemu_cleanup", "_start"} <= set(functions(main["stack"]))
    assert document["bql"] == {"known": True, "holder": pid}
    assert [job["id"] for job in document["jobs"]] == [JOB]  # type: ignore[attr-defined]
    roles = [one["role"] for one in document["threads"]]  # type: ignore[attr-defined]
    assert roles.count("iothread") == 2
    assert "vcpu" in roles
    assert (document["missing"], document["absent_files"]) == ([], [])


@pytest.mark.bpf
@pytest.mark.parametrize("scenario", ["vcpu-poll", "stranded", "reroute"])
def test_the_lab_shows_its_verdicts_on_it(scenario: str) -> None:
    command = [sys.executable, "-m", "qtrace", "lab", scenario, "--qemu", str(QEMU)]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shown = "main-loop" if scenario == "reroute" else scenario
    assert json.loads(run.stdout)["verdict"] == shown


def test_a_hung_one_is_explained(hung: Guest) -> None:
    status, document, _err = inspect("--pid", hung.pid)
    assert status == 1
    check(document, hung.pid)
    assert thread(document, hung.pid)["blocked_in"] == "io_uring_enter"


@pytest.mark.gdb
def test_each_core_of_a_hung_one_shows_it(hung: Guest, tmp_path: Path) -> None:
    """io_uring_enter() that a stop interrupts returns what it had submitted, or -EINTR."""
    for _ in range(CORES):
        core = core_of(hung.pid, program_of(OTHER_QEMU), tmp_path).arguments[1]
        status, document, _err = inspect("--core", core)
        assert status == 4
        check(document, hung.pid)
        Path(core).unlink()


@pytest.mark.gdb
def test_gdb_shows_it_once_it_has_the_files(hung: Guest, root: str) -> None:
    target = Target(("-p", str(hung.pid)), hung.pid, program_of(OTHER_QEMU))
    asked = ("aio why", "aio threads", "aio handlers", "aio bh")
    if root:
        said = gdb(target, *asked)
        assert f"set sysroot /proc/{hung.pid}/root" in said
        assert "it cannot be told whether anything is in the way" in said
        assert "nothing is in the way" not in said
        assert "runs in" not in said
    said = gdb(target, f"set sysroot /proc/{hung.pid}/root", *asked)
    assert f"the main loop does not run: {hung.pid} (main) waits in bdrv_drain_all_begin < " in said
    assert "polling `main`" in said
    assert "polling `iothread:iot0`" in said
    assert "waits in qemu_process_cpu_events" in said
    assert "loop of `iothread" not in said
    assert STRANDED in said
    assert "set sysroot" not in said
    assert "not shown by the code" not in said


@pytest.mark.gdb
@pytest.mark.skipif(not os.access("/proc/sys/kernel/core_pattern", os.W_OK), reason="root's")
def test_a_core_that_the_kernel_wrote_needs_the_files_of_its_root(root: str) -> None:
    with kernel_cores() as folder:
        with hung_guest(QEMU, "tcg") as guest:
            resource.prlimit(guest.pid, resource.RLIMIT_CORE, ANY_SIZE)
            os.kill(guest.pid, signal.SIGABRT)
            os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        core = folder / f"core.{guest.pid}"
        status, document, _err = inspect("--core", core, "--sysroot", root or "/")
        assert status == 4
        check(document, guest.pid)
        exe = program_of(OTHER_QEMU)
        assert inspect("--core", core, "--exe", exe)[1]["findings"] == document["findings"]
        if root:
            elsewhere = folder / "elsewhere"
            elsewhere.symlink_to(exe)
            check_without_files(core, elsewhere, guest.pid)
            said = gdb(target_of(guest.pid, exe, core), "aio why", "aio bh")
            assert "it cannot be told whether anything is in the way" in said
            assert "set sysroot DIR" in said
            assert f"{STRANDED}  iohandler" in said
        commands = (f"set sysroot {root or '/'}", f"core-file {core}", "aio why", "aio threads")
        said = gdb(target_of(guest.pid, exe, core), *commands)
        assert f"{guest.pid} (main) waits in bdrv_drain_all_begin < " in said
        assert "waits in qemu_process_cpu_events" in said
        assert "set sysroot DIR" not in said


def check_without_files(core: Path, exe: Path, pid: int) -> None:
    """Of the libraries there are none here, or other builds: they are named, and not used."""
    status, document, err = inspect("--core", core, "--exe", exe)
    assert (status, document["verdict"], document["findings"]) == (4, "inconclusive", [])
    assert "hint: name the folder below which the core's files lie with --sysroot" in err
    assert any("liburing.so" in file for file in document["absent_files"])
    assert f"the stack of {pid} (main) breaks off" in document["unclear"]
    libraries = [one["stack"][1:] for one in document["threads"] if not one["complete"]]
    assert not any(libraries)
