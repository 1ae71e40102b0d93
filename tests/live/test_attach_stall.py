"""Recordings of what cannot run: `stranded` with its proof, and no accusation without."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.reader import read_trace
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attached, watched_half
from tests.live.support.blocked_main import SAVE, guest_with_monitors, save_left_behind
from tests.live.support.gdb_cases import everywhere
from tests.live.support.hung import hung_guest

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

STALL_AFTER = ("--stall-after", "300ms")


@everywhere
def test_a_job_that_nobody_can_run_is_stranded(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    with (
        guest_with_monitors(qemu_binary, accel) as guest,
        attached(guest.pid, *STALL_AFTER, "-o", trace) as attach,
        save_left_behind(guest),
    ):
        warning = next_warning(attach.process)
        await_looks(trace, SAVE, 2)
        status, report, err = attach.end()
    assert status == 1
    # The cause first: main sleeps in open(2), and all that is pending waits for that.
    assert report["verdict"] == "stuck"
    half = watched_half(report)
    assert half["verdicts"] == {"stranded": 1}
    (finding,) = half["findings"]
    assert (finding["tid"], finding["role"]) == (guest.pid, "main")
    assert finding["context"] == "main"
    assert finding["polls"] is None
    assert "qmp_chardev_open_file_source" in finding["stack"]
    assert finding["scheduled_by_tid"] == guest.pid
    assert f"the only thread that runs it, {guest.pid} (main), waits in open" in finding["sentence"]
    # At once, and again at the end.
    assert f"{SAVE} is stranded in `main`" in warning + err
    assert f"warning: {finding['sentence']}" in err
    assert judge([trace])["verdict"] == "stuck"
    looks = read_trace(trace).frame
    looks = looks[(looks["event"] == "blocked") & (looks["name"] == SAVE)]
    assert len(looks) >= 2
    assert set(looks["role"]) == {"main"}
    assert not json.loads(looks["detail"].iloc[0]).get("end")
    assert json.loads(looks["detail"].iloc[-1])["end"]


@pytest.mark.gdb
def test_a_recording_by_gdb_proves_it_too(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        guest_with_monitors(find_qemu(), "tcg") as guest,
        attached(guest.pid, "--backend", "gdb", *STALL_AFTER, "-o", trace) as attach,
        save_left_behind(guest),
    ):
        await_looks(trace, SAVE, 2)
        status, report, err = attach.end()
    assert (status, report["verdict"]) == (1, "stuck")
    (finding,) = watched_half(report)["findings"]
    assert finding["scheduled_by_tid"] == guest.pid
    assert "qmp_chardev_open_file_source" in finding["stack"]
    assert f"warning: {finding['sentence']}" in err


@everywhere
def test_what_was_blocked_and_ran_later_is_not_stranded(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    with (
        guest_with_monitors(qemu_binary, accel) as guest,
        attached(guest.pid, *STALL_AFTER, "-o", trace) as attach,
        save_left_behind(guest) as release,
    ):
        await_looks(trace, SAVE, 1)
        release()
        guest.qmp.wait_event("JOB_STATUS_CHANGE", lambda e: e["data"]["status"] == "concluded")
        status, report, _err = attach.end()
    # The bottom half was late; that the loop did not come back for long is a finding of its own.
    assert status == bool(report["stuck"])
    assert all(stuck["over_ns"] for stuck in report["stuck"])
    assert watched_half(report)["verdicts"] == {"main-loop": 1}


@everywhere
def test_what_was_pending_before_the_recording_is_judged_too(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with (
        guest_with_monitors(qemu_binary, accel) as guest,
        save_left_behind(guest),
        attached(guest.pid, "--duration", "1s") as attach,
    ):
        status, report, _err = attach.result()
    assert status == 1
    (finding,) = watched_half(report)["findings"]
    assert finding["verdict"] == "stranded"
    assert finding["scheduled_by_tid"] is None


def test_what_was_pending_before_and_ran_is_one_instance() -> None:
    with (
        guest_with_monitors(find_qemu(), "tcg") as guest,
        save_left_behind(guest) as release,
        attached(guest.pid, "-b", SAVE) as attach,
    ):
        release()
        guest.qmp.wait_event("JOB_STATUS_CHANGE", lambda e: e["data"]["status"] == "concluded")
        status, report, _err = attach.end()
    assert status == 0
    assert watched_half(report)["verdicts"] == {"main-loop": 1}


def test_inspect_knows_the_age_from_the_growing_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        guest_with_monitors(find_qemu(), "tcg") as guest,
        attached(guest.pid, "-o", trace),
        save_left_behind(guest),
    ):
        looked = subprocess.run(
            [sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid), "--trace", trace,
             "--format", "json"],
            text=True, capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    halves = [half for c in json.loads(looked.stdout)["contexts"] for half in c["bottom_halves"]]
    ages = {half["name"]: half["pending_ns"] for half in halves}
    assert ages[SAVE] > 0


@everywhere
def test_a_hang_that_was_there_before_is_judged(qemu_binary: Path, accel: Accelerator) -> None:
    with (
        hung_guest(qemu_binary, accel) as guest,
        attached(guest.pid, "--duration", "1s") as attach,
    ):
        status, report, err = attach.result()
    assert status == 1
    assert report["verdict"] == "stuck"
    (stuck,) = report["stuck"]
    assert (stuck["tid"], stuck["polls"]) == (guest.pid, "main")
    half = watched_half(report, "co_schedule_bh_cb")
    (finding,) = half["findings"]
    assert (finding["context"], finding["polls"]) == ("iohandler", "main")
    assert finding["stack"][finding["deciding_frame"]] == "aio_poll"
    assert "bdrv_drain_all_begin" in finding["stack"]
    # How long its requests are in flight depends on when it is told.
    told, _, requests = stuck["sentence"].partition("; in flight for at least ")
    assert f"warning: {told}" in err
    assert requests.endswith("sleeps in bdrv_co_pwritev_part")
    assert f"behind it wait {half['name']}" in stuck["sentence"]


@everywhere
def test_a_busy_guest_is_not_accused(qemu_binary: Path, accel: Accelerator, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with (
        Guest(qemu_binary, accel) as guest,
        start_recording(guest.pid, RecordingOptions(trace, stall_after_s=0.02)) as recording,
    ):
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            recording.poll(0.01)
        recording.stop("enough")
        assert recording.warnings() == []
    assert judge([trace])["verdict"] == "not-seen"


def next_warning(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def await_looks(trace: Path, name: str, count: int) -> None:
    """Until the recorder has written that many rows of looks."""
    deadline = time.monotonic() + TIMEOUT_S
    while sum(",blocked," in row and f",{name}," in row for row in trace.open()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
