"""Hangs while a recording goes on: noticed at once, watched or not, and nobody sound accused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtrace.analysis import judge
from qtrace.analysis.stuck import MOVING_NS
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.lab.snapshot_jobs import save_round
from qtrace.process.qmp_client import QmpClient
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from tests.live.support.attached import Attached, attached, wait_for
from tests.live.support.dead_fuse import Sleeper, guest_on
from tests.live.support.gdb_cases import everywhere
from tests.live.support.hung import functions_of_main_thread, guest_with_sleeping_job

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

SOON = ("--stall-after", "500ms")
# What is over before the limit is no finding, though a recording that begins in it tells at once.
BEYOND_SOON_S = 1.5
TIMEOUT_S = 60
# What main sleeps in while it opens a pipe that nobody reads.
OPENS = "qmp_chardev_open_file_source"


@contextmanager
def in_a_command(guest: Guest, sleeps_in: str = OPENS) -> Iterator[Callable[[], None]]:
    """main is in the QMP command chardev-add, in open(2) of a pipe. Yields what lets it go on."""
    pipe = guest.folder / "pipe"
    os.mkfifo(pipe)
    backend = {"type": "file", "data": {"out": pipe.name}}
    readers: list[int] = []
    with QmpClient(guest.second_qmp_socket, TIMEOUT_S) as qmp:

        def ask() -> None:
            # A guest that is killed with the command in it gives no answer.
            with contextlib.suppress(Exception):
                qmp.command("chardev-add", id="pipe", backend=backend)

        asked = threading.Thread(target=ask)
        asked.start()

        def release() -> None:
            if not readers:
                time.sleep(max(0.0, since + BEYOND_SOON_S - time.monotonic()))
                readers.append(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
                asked.join()

        since = 0.0
        try:
            wait_for(lambda: sleeps_in in functions_of_main_thread(guest.pid), TIMEOUT_S)
            since = time.monotonic()
            yield release
        finally:
            release()
            os.close(readers[0])


def warned(attach: Attached, text: str) -> str:
    """The next line on stderr with this in it."""
    assert attach.process.stderr is not None
    for line in attach.process.stderr:
        if text in line:
            return line
    pytest.fail(f"nothing was said of {text!r}")


def stuck_in(report: dict[str, Any], tid: int) -> dict[str, Any]:
    (one,) = [stuck for stuck in report["stuck"] if stuck["tid"] == tid]
    return dict(one)


def lint(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in report["lints"] if one["lint"] == name]
    return dict(found)


@everywhere
def test_a_loop_that_does_not_come_back_is_told_at_once_and_when_it_does(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    """Nothing that is watched is pending, and the command's rows are there without --all."""
    trace = tmp_path / "trace.csv"
    with (
        Guest(qemu_binary, accel, "idle") as guest,
        attached(guest.pid, *SOON, "-o", trace) as attach,
    ):
        with in_a_command(guest) as release:
            # It may be seen at work before it sleeps.
            warning = warned(attach, "QMP chardev-add, waits in")
            release()
            back = warned(attach, "came back")
        status, report, _err = attach.end()
    assert f"{guest.pid} (main), in QMP chardev-add, waits in open" in warning
    assert "at least" in warning
    assert back.startswith("warning: main came back after at least ")
    assert (status, report["verdict"]) == (1, "stuck")
    stuck = stuck_in(report, guest.pid)
    assert (stuck["role"], stuck["command"], stuck["came_back"]) == (
        "main",
        "QMP chardev-add",
        True,
    )
    assert OPENS in stuck["waits"]
    assert OPENS in stuck["stack"]
    assert stuck["at_least_ns"] >= 500_000_000
    found = lint(report, "long-command")
    assert not found["asked"]
    (command,) = found["findings"]
    assert "QMP chardev-add ran " in command["sentence"]
    assert command["sentence"].endswith(": the BQL and the main loop were gone")
    assert command["value"] >= stuck["at_least_ns"]
    again = judge([trace])
    assert (again["verdict"], again["stuck"]) == ("stuck", report["stuck"])


@everywhere
def test_a_hang_that_is_there_already_is_told_and_never_not_seen(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with (
        Guest(qemu_binary, accel, "idle") as guest,
        in_a_command(guest),
        attached(guest.pid, "--duration", "1s") as attach,
    ):
        status, report, err = attach.result()
    assert (status, report["verdict"]) == (1, "stuck")
    stuck = stuck_in(report, guest.pid)
    assert (stuck["command"], stuck["over_ns"]) == ("QMP chardev-add", None)
    assert f"warning: {stuck['sentence']}" in err


def test_with_all_it_is_told_too_and_the_command_that_has_not_ended(tmp_path: Path) -> None:
    trace = tmp_path / "trace.parquet"
    with (
        Guest(find_qemu(), "tcg", "idle") as guest,
        attached(guest.pid, *SOON, "--all", "-o", trace) as attach,
        in_a_command(guest),
    ):
        warned(attach, "the main loop does not run")
        # So far apart are two looks where bottom halves come to wait behind it meanwhile.
        time.sleep(MOVING_NS / 1e9)
        status, report, _err = attach.end()
    assert (status, report["verdict"]) == (1, "stuck"), report["notes"]
    assert stuck_in(report, guest.pid)["command"] == "QMP chardev-add"
    (command,) = lint(report, "long-command")["findings"]
    assert not command["facts"]["ended"]
    assert "or longer" in command["sentence"]
    assert "it had not ended when the recording did" in command["sentence"]


@pytest.mark.gdb
def test_the_gdb_recorder_writes_the_same_rows(tmp_path: Path) -> None:
    with (
        Guest(find_qemu(), "tcg", "idle") as guest,
        attached(guest.pid, *SOON, "--backend", "gdb") as attach,
    ):
        with in_a_command(guest) as release:
            warned(attach, "the main loop does not run")
            release()
            warned(attach, "main came back")
        status, report, _err = attach.end()
    assert (status, report["verdict"]) == (1, "stuck")
    assert stuck_in(report, guest.pid)["came_back"]


def test_a_hang_ends_a_recording_until_a_finding() -> None:
    with (
        Guest(find_qemu(), "tcg", "idle") as guest,
        attached(guest.pid, *SOON, "--until-finding") as attach,
        in_a_command(guest),
    ):
        status, report, _err = attach.result()
    assert (status, report["verdict"]) == (1, "stuck")


@everywhere
def test_a_poll_that_never_ends_is_stuck(qemu_binary: Path, accel: Accelerator) -> None:
    """main polls for a write that blkdebug keeps; told to quit by a signal, nothing is pending."""
    with (
        guest_with_sleeping_job(qemu_binary, accel) as guest,
        attached(guest.pid, *SOON) as attach,
    ):
        os.kill(guest.pid, signal.SIGTERM)
        warned(attach, "bdrv_drain_all_begin")
        status, report, _err = attach.end()
    assert (status, report["verdict"]) == (1, "stuck")
    stuck = stuck_in(report, guest.pid)
    assert stuck["polls"] == "main"
    assert {"bdrv_drain_all_begin", "qemu_cleanup"} <= set(stuck["waits"])


def test_a_target_that_is_stopped_is_remarked_and_nothing_is_not_seen(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(find_qemu(), "tcg", "idle") as guest:
        os.kill(guest.pid, signal.SIGSTOP)
        try:
            with attached(guest.pid, "--duration", "1s", "-o", trace) as attach:
                status, report, err = attach.result()
        finally:
            os.kill(guest.pid, signal.SIGCONT)
    assert (status, report["verdict"]) == (4, "inconclusive")
    (held,) = report["held"]
    assert "stopped by" in held["sentence"]
    assert held["released_ns"] is None
    assert "warning: the target is stopped by" in err
    assert {half["verdict"] for half in report["bottom_halves"]} == {"inconclusive"}


def test_a_target_that_goes_on_is_told_and_watched_again() -> None:
    with Guest(find_qemu(), "tcg", "idle") as guest, attached(guest.pid, *SOON) as attach:
        os.kill(guest.pid, signal.SIGSTOP)
        warned(attach, "the target is stopped by")
        os.kill(guest.pid, signal.SIGCONT)
        warned(attach, "the target goes on after at least")
        with in_a_command(guest):
            warned(attach, "the main loop does not run")
            status, report, _err = attach.end()
    assert (status, report["verdict"]) == (1, "stuck")
    (held,) = report["held"]
    assert held["released_ns"] is not None


def test_a_frozen_target_is_remarked() -> None:
    with (
        Guest(find_qemu(), "tcg", "idle") as guest,
        frozen(guest.pid),
        attached(guest.pid, "--duration", "1s") as attach,
    ):
        status, report, _err = attach.result()
    assert (status, report["verdict"]) == (4, "inconclusive")
    assert "frozen" in report["held"][0]["sentence"]


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """In a cgroup of version 2 of its own that is frozen."""
    mounted = subprocess.run(
        ["findmnt", "-n", "-o", "TARGET", "-t", "cgroup2"], capture_output=True, text=True
    ).stdout.split()
    if not mounted:
        pytest.skip("there is no cgroup of version 2")
    group = Path(mounted[0], f"qtrace-test-{os.getpid()}")
    before = Path(mounted[0])
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        (group / "cgroup.freeze").write_text("1")
        wait_for(lambda: "frozen 1" in (group / "cgroup.events").read_text())
        yield
    finally:
        (group / "cgroup.freeze").write_text("0")
        (before / "cgroup.procs").write_text(str(pid))
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@everywhere
@pytest.mark.parametrize("load", ["idle", "writes", "saves", "queries"])
def test_nobody_sound_is_accused(
    qemu_binary: Path, accel: Accelerator, load: str, tmp_path: Path
) -> None:
    """A guest that sleeps, one that writes to flash, one that is saved, one that is asked a lot."""
    trace = tmp_path / "trace.csv"
    firmware = "idle" if load == "idle" else "pflash"
    with (
        Guest(qemu_binary, accel, firmware) as guest,  # type: ignore[arg-type]
        start_recording(guest.pid, RecordingOptions(trace, stall_after_s=0.5)) as recording,
    ):
        until, number = time.monotonic() + 3, 0
        while time.monotonic() < until:
            number += 1
            if load == "saves":
                save_round(guest.qmp, f"save{number}")
            elif load == "queries":
                guest.qmp.command("query-block")
            recording.poll(0.05 if load in ("idle", "writes") else 0)
        recording.stop("enough")
        said = recording.warnings()
    report = judge([trace])
    assert (report["stuck"], report["held"]) == ([], [])
    assert not [sentence for sentence in said if "does not run" in sentence]


@pytest.mark.fuse
@everywhere
@pytest.mark.parametrize("sleeper", ["main", "iothread"])
def test_a_loop_asleep_in_a_dead_file_system_is_told(
    qemu_binary: Path, accel: Accelerator, sleeper: Sleeper, tmp_path: Path
) -> None:
    """The other loop goes on, and is not accused."""
    trace = tmp_path / "trace.csv"
    with (
        guest_on(qemu_binary, accel, tmp_path, "idle") as (guest, file),
        attached(guest.pid, *SOON, "-o", trace) as attach,
    ):
        tid = file.put_to_sleep(guest, sleeper)
        warning = warned(attach, "does not run")
        # One look proves nothing.
        wait_for(lambda: judge([trace])["stuck"], TIMEOUT_S)
        file.thaw()
        back = warned(attach, "came back")
        status, report, _err = attach.end()
    name = "main" if sleeper == "main" else "IO iot0"
    assert f"{tid} ({name})" in warning
    assert ("the main loop" in warning) == (sleeper == "main")
    assert name in back
    assert (status, report["verdict"]) == (1, "stuck")
    (stuck,) = report["stuck"]
    assert (stuck["tid"], stuck["role"], stuck["came_back"]) == (tid, sleeper, True)


@contextmanager
def not_reached(guest: Guest) -> Iterator[None]:
    """A control: the same command, whose pipe somebody reads."""
    pipe = guest.folder / "read"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        guest.qmp.command(
            "chardev-add", id="read", backend={"type": "file", "data": {"out": pipe.name}}
        )
        yield
    finally:
        os.close(reader)


def test_the_same_command_that_does_not_wait_is_nothing_to_tell() -> None:
    with (
        Guest(find_qemu(), "tcg", "idle") as guest,
        attached(guest.pid, *SOON) as attach,
        not_reached(guest),
    ):
        status, report, err = attach.end()
    assert (status, report["verdict"], report["stuck"]) == (0, "not-seen", [])
    assert "does not run" not in err


def test_saves_by_hmp_are_told_where_the_job_was_not_seen() -> None:
    with Guest(find_qemu(), "tcg", "idle", disk=True) as guest, attached(guest.pid) as attach:
        guest.qmp.command("human-monitor-command", **{"command-line": "savevm one"})
        status, report, _err = attach.end()
    assert status == 0
    (half,) = [one for one in report["bottom_halves"] if one["name"] == "snapshot_save_job_bh"]
    assert half["verdict"] == "not-seen"
    assert half["notes"] == ["save_snapshot() was called once, but not by this job: as by HMP"]
