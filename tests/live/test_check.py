"""``qtrace check`` on live QEMUs: healthy ones, hung ones, and what cannot be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.qemu.block.remarks import PAUSED
from tests.limits import TIMEOUT_S
from tests.live.support.gdb_cases import STRANDED, Hung, everywhere
from tests.live.support.ptraced import until
from tests.live.support.writing import firmware_writing_to
from tests.live.test_blocks import THROTTLED_DISK
from tests.live.test_privilege import NOBODY, PTRACE_AND_FILES
from tests.live.test_request_stuck import DEVICE, NODE, SLOW, ask, guest_on_server

pytestmark = pytest.mark.qemu

LINES = 10
PVPANIC = 0x505


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(find_qemu(), firmware="idle") as started:
        yield started


def run_check(*options: object, user: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [*user, sys.executable, "-m", "qtrace", "check", *map(str, options)],
        text=True, capture_output=True, timeout=TIMEOUT_S,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    return run


def answer(*options: object, user: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    run = run_check(*options, "--format", "json", user=user)
    return run.returncode, json.loads(run.stdout)


class Panicking(Guest):
    """Its guest tells pvpanic that it has."""

    def _image(self) -> bytes:
        return firmware_writing_to(PVPANIC)


@everywhere
def test_a_guest_that_a_fault_has_stopped_is_not_healthy(
    qemu_binary: Path, accel: Accelerator
) -> None:
    arguments = ("-device", "pvpanic", "-action", "panic=pause")
    with Panicking(qemu_binary, accel, "idle", extra_args=arguments) as guest:
        until(lambda: guest.qmp.command("query-status")["status"] == "guest-panicked", "its panic")
        status, document = answer("--pid", guest.pid, "--for", "1s")
        # Who stops it by a command knows why.
        guest.qmp.command("system_reset")
        waiting = answer("--pid", guest.pid, "--for", "1s")
    assert (status, document["verdict"]) == (1, "paused")
    (noted,) = document["noted"]
    assert noted["sentence"] == PAUSED["guest-panicked"]
    assert document["remarks"] == []
    assert (waiting[0], waiting[1]["verdict"]) == (0, "healthy")
    assert waiting[1]["remarks"] == [PAUSED["prelaunch"]]


@contextmanager
def quota(pid: int, processors: float) -> Iterator[str]:
    """A process in a cgroup that lets it have so much of a processor; its name."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    root = v1 if v1.is_dir() else v2
    folder = root / f"qtrace-quota-{pid}"
    folder.mkdir()
    try:
        quota_us = int(processors * 100_000)
        if root == v1:
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        elif not (folder / "cpu.max").exists():
            pytest.skip("no cgroup has the controller of processors here")
        else:
            (folder / "cpu.max").write_text(f"{quota_us} 100000")
        (folder / "cgroup.procs").write_text(str(pid))
        yield f"/{folder.name}"
    finally:
        (root / "cgroup.procs").write_text(str(pid))
        folder.rmdir()


@everywhere
def test_a_guest_whose_cgroup_holds_it_back_is_slow(qemu_binary: Path, accel: Accelerator) -> None:
    with Guest(qemu_binary, accel) as guest, quota(guest.pid, 0.05) as cgroup:
        status, document = answer("--pid", guest.pid, "--for", "3s")
    assert (status, document["verdict"]) == (1, "slow")
    (noted,) = document["noted"]
    assert noted["sentence"].startswith(f"its cgroup {cgroup} lets it have 0.05 of a processor (")
    assert ", and held it back in " in noted["sentence"]
    assert noted["cgroup"] == cgroup


@everywhere
def test_a_guest_whose_limits_let_nothing_pass_is_slow(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel, "idle", extra_args=THROTTLED_DISK) as guest:
        for _ in range(2):
            line = {"command-line": 'qemu-io slow "aio_write 0 4k"'}
            guest.qmp.command("human-monitor-command", **line)
        status, document = answer("--pid", guest.pid, "--for", "12s")
    assert (status, document["verdict"]) == (1, "slow")
    (noted,) = document["noted"]
    assert ": held back by throttle group slow, in each look over " in noted["sentence"]
    assert noted["lasted_ns"] >= 5_000_000_000
    assert "limits" in document["next"]


@pytest.mark.bpf
@everywhere
def test_a_healthy_qemu_is_told_so_with_the_numbers_that_show_it(
    qemu_binary: Path, accel: Accelerator
) -> None:
    over = threading.Event()
    with Guest(qemu_binary, accel, firmware="idle") as guest:

        def ask() -> None:
            while not over.wait(0.05):
                guest.qmp.command("query-status")

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            status, document = answer("--pid", guest.pid, "--for", "2s")
        finally:
            over.set()
            asking.join()
        pid = guest.pid
    assert (status, document["verdict"]) == (0, "healthy")
    assert (document["findings"], document["noted"], document["unclear"]) == ([], [], [])
    assert document["unseen"] == []
    main, *others = document["loops"]
    assert (main["tid"], main["role"]) == (pid, "main")
    assert 0 < main["seen_in_loop"] <= main["seen"]
    assert 0 < main["away_at_most_ns"] <= document["watched_ns"]
    assert {loop["role"] for loop in others} <= {"iothread"}
    assert document["qmp"]["commands"] > 0
    assert document["block_requests"]["most_in_flight"] == 0
    assert document["block_requests"]["looks"] > 0
    assert document["processors"]["vcpu"]["threads"] == 1
    assert document["processors"]["main"]["ran_ns"] > 0
    assert document["next"].startswith("qtrace ") or "processors" in document["next"]


@pytest.mark.bpf
def test_a_hung_qemu_is_told_within_seconds_and_the_cause_comes_first(hung: Hung) -> None:
    pid = hung(find_qemu(), "tcg", "live").pid
    run = run_check("--pid", pid, "--for", "1m")
    assert run.returncode == 1
    head, first, *rest = run.stdout.splitlines()
    assert f"pid {pid}" in head
    assert first.startswith(f"stuck: the main loop does not run: {pid} (main) waits in bdrv_drain")
    assert STRANDED in first
    assert len(rest) <= LINES - 2
    assert rest[-1].startswith("next: qtrace ")
    assert "healthy" not in run.stdout


def test_without_the_right_to_record_looks_alone_tell_and_what_was_not_seen_is_named(
    guest: Guest,
) -> None:
    user = (*NOBODY, *PTRACE_AND_FILES)
    status, document = answer("--pid", guest.pid, "--for", "1s", user=user)
    assert (status, document["verdict"]) == (0, "healthy")
    assert document["qmp"]["commands"] is None
    assert document["unseen"] == [
        "QMP commands and snapshot jobs: eBPF needs CAP_BPF and CAP_PERFMON, or root"
    ]


@pytest.mark.bpf
def test_four_capabilities_see_the_commands_too(guest: Guest) -> None:
    held = "+bpf,+perfmon,+sys_ptrace,+dac_read_search"
    user = (*NOBODY, f"--inh-caps={held}", f"--ambient-caps={held}")
    status, document = answer("--pid", guest.pid, "--for", "1s", user=user)
    assert (status, document["verdict"]) == (0, "healthy")
    assert document["qmp"]["commands"] == 0
    assert document["unseen"] == []


def test_a_request_in_flight_all_the_time_is_slow(tmp_path: Path) -> None:
    """Its server may answer yet; the guest waits, and healthy is another thing."""
    with guest_on_server(find_qemu(), tmp_path, SLOW) as (guest, _server):
        ask(guest, "aio_read 0 4k")
        status, found = answer("--pid", guest.pid, "--for", "12s", "--looks-only")
    assert (status, found["verdict"]) == (1, "slow")
    (noted,) = found["noted"]
    assert noted["sentence"].startswith(
        f"read of 4096 bytes at 0 on node {NODE} (nbd), for {DEVICE}"
    )
    assert noted["lasted_ns"] >= 5_000_000_000


def test_a_stopped_qemu_is_neither_healthy_nor_wrong(guest: Guest) -> None:
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        status, document = answer("--pid", guest.pid, "--for", "1h")
        said = run_check("--pid", guest.pid, "--for", "1h").stdout
    finally:
        os.kill(guest.pid, signal.SIGCONT)
    assert (status, document["verdict"]) == (4, "inconclusive")
    assert "stopped by" in document["unclear"][0]
    assert f"kill -CONT {guest.pid}" in document["next"]
    # That its threads are where they sleep when all is well shows nothing.
    assert "main loop" not in said


def test_every_qemu_of_the_host_has_its_line_and_the_worst_comes_first(
    guest: Guest, hung: Hung
) -> None:
    stuck = hung(find_qemu(), "tcg", "live").pid
    run = run_check("--host", "--for", "1s", "--format", "json")
    assert run.returncode == 1
    document = json.loads(run.stdout)
    found = {one["target"]["pid"]: one["verdict"] for one in document["qemus"]}
    assert (found[stuck], found[guest.pid]) == ("stuck", "healthy")
    assert document["verdict"] == document["qemus"][0]["verdict"] == "stuck"
    order = list(found)
    assert order.index(stuck) < order.index(guest.pid)


def test_of_a_guest_that_stands_still_the_line_says_so() -> None:
    """Nothing of its QEMU's is wrong."""
    with Guest(find_qemu(), firmware="idle") as paused:
        paused.qmp.command("stop")
        lines = run_check("--host", "--for", "1s").stdout.splitlines()
        (line,) = [one for one in lines if f" {paused.pid} " in one or f" {paused.pid}:" in one]
        assert line.startswith("healthy")
        assert "; the guest is paused, by a user, a management program" in line


def test_of_qemus_that_nobody_may_look_at_it_is_said_line_by_line(guest: Guest) -> None:
    run = run_check("--host", "--for", "1s", user=NOBODY)
    assert run.returncode == 4
    lines = run.stdout.splitlines()
    (line,) = [one for one in lines if f" {guest.pid} " in one or f" {guest.pid}:" in one]
    assert line.startswith("inconclusive")
    assert "run qtrace as root" in line


@pytest.mark.parametrize("options", [(), ("--pid", 1, "--host"), ("--pid", 1, "--name", "x")])
def test_one_thing_is_to_be_named(options: tuple[object, ...]) -> None:
    run = run_check(*options)
    assert (run.returncode, "--pid" in run.stderr) == (2, True)


def test_of_a_guest_that_is_not_there_the_nearest_name_is_told(guest: Guest) -> None:
    run = run_check("--name", "qtrace-lib")
    assert run.returncode == 3
    assert "no guest is called 'qtrace-lib'" in run.stderr
    assert "the nearest is qtrace-lab" in run.stderr


def test_a_process_that_is_none_is_told_as_everywhere() -> None:
    run = run_check("--pid", 1 << 22)
    assert (run.returncode, "remedy: qtrace ps" in run.stderr) == (3, True)
