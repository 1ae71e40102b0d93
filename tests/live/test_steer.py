"""``qtrace steer``: the run happens where it is wanted, and the guest is none the worse for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest, find_qemu
from tests.live.support.attached import attached, save, watched_half
from tests.live.support.experimenting import in_force, started
from tests.live.support.ptraced import assert_runs_on, tracer_of, until

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

COUNT = 7
HOLD_LIMIT_MS = 20.0
ROLES = {"vcpu": "vcpu-poll", "main": "main-loop"}


@pytest.mark.bpf
@pytest.mark.parametrize("run_on", ["vcpu", "main"])
def test_each_run_is_where_it_was_wanted_and_ebpf_judges_it_so(
    qemu_binary: Path, accel: Accelerator, run_on: str
) -> None:
    with Guest(qemu_binary, accel) as guest:
        with (
            attached(guest.pid, "--backend", "ebpf") as attach,
            in_force("steer", guest.pid, "--run-on", run_on, "--count", COUNT) as steering,
        ):
            # Just these: the next round would not be steered any more.
            save(guest, COUNT)
            status, result, _err = steering.result()
            _status, report, _err = attach.end()
        assert_runs_on(guest)
    assert status == 0
    assert result["as_wanted"] == COUNT
    assert result["problems"] == []
    assert {run["thread"]["role"] for run in result["runs"]} == {run_on}
    assert max(run["held_ms"] for run in result["runs"]) <= HOLD_LIMIT_MS
    assert watched_half(report)["verdicts"] == {ROLES[run_on]: COUNT}


def test_a_vcpu_thread_without_a_name_is_known_by_its_stack(accel: Accelerator) -> None:
    with (
        Guest(find_qemu(), accel, debug_threads=False) as guest,
        in_force("steer", guest.pid, "--run-on", "vcpu", "--count", 2) as steering,
    ):
        status, result, _err = steering.save_until_done(guest)
    assert status == 0
    assert result["runs"][-1]["thread"]["role"] == "vcpu"
    assert result["runs"][-1]["stack"][:3] == ["snapshot_save_job_bh", "aio_bh_poll", "aio_poll"]


def test_where_no_vcpu_polls_it_gives_up_and_says_why(accel: Accelerator) -> None:
    with Guest(find_qemu(), accel, firmware="idle") as guest:
        with in_force("steer", guest.pid, "--run-on", "vcpu") as steering:
            status, result, _err = steering.save_until_done(guest)
        assert_runs_on(guest)
    assert status == 4
    assert result["as_wanted"] == 0
    assert "no vCPU thread polled main" in result["gave_up"]
    assert {run["thread"]["role"] for run in result["runs"]} == {"main"}


def test_what_is_not_scheduled_in_time_is_given_up() -> None:
    with Guest(find_qemu()) as guest:
        with started("steer", guest.pid, "--run-on", "vcpu", "--timeout", "300ms") as steering:
            status, result, err = steering.result()
        assert_runs_on(guest)
    assert status == 4
    assert "was not scheduled" in result["gave_up"]
    assert "WARNING" in err
    assert "undone" in err


@pytest.mark.parametrize("run_on", ["vcpu", "main"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_every_phase(run_on: str, number: signal.Signals) -> None:
    options = ("--run-on", run_on, "--count", 1000)
    with Guest(find_qemu()) as guest:
        # While it attaches: as soon as gdb is there.
        with started("steer", guest.pid, *options) as steering:
            tracer_of(guest.pid)
            status, result, _err = steering.end(number)
        assert (status, result["ended_by"]) == (4, number.name)
        assert_runs_on(guest)
        # While it is at work.
        with in_force("steer", guest.pid, *options) as steering:
            save(guest, 5)
            status, result, _err = steering.end(number)
        assert (status, result["ended_by"]) == (4, number.name)
        assert result["as_wanted"] == len(result["runs"]) == 5
        assert_runs_on(guest)
        save(guest, 2)


@pytest.mark.parametrize("run_on", ["vcpu", "main"])
@pytest.mark.parametrize("whom", ["qtrace", "gdb", "both"])
def test_the_guest_outlives_sigkill(accel: Accelerator, run_on: str, whom: str) -> None:
    with Guest(find_qemu(), accel) as guest:
        with in_force("steer", guest.pid, "--run-on", run_on, "--count", 1000) as steering:
            save(guest, 3)
            gdb = tracer_of(guest.pid)
            if whom != "gdb":
                steering.process.kill()
            if whom != "qtrace":
                os.kill(gdb, signal.SIGKILL)
            if whom == "gdb":
                status, _result, err = steering.result()
                assert status == 3
                assert "gdb has died" in err
        until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
        assert_runs_on(guest)
        save(guest, 2)


def test_the_targets_end_is_reported() -> None:
    with Guest(find_qemu()) as guest, in_force("steer", guest.pid, "--run-on", "main") as steering:
        os.kill(guest.pid, signal.SIGKILL)
        status, result, _err = steering.result()
    assert status == 3
    assert "has ended" in result["gave_up"]


@pytest.mark.parametrize(
    ("bottom_half", "status", "text"),
    [
        ("snapshot_sav_job", 2, "snapshot_save_job_bh"),
        ("snapshot_*_job_bh", 2, "name one of them"),
        ("do_qmp_dispatch_bh", 3, "goes into iohandler"),
        ("aio_wait_bh", 3, "does not show where the context"),
    ],
)
def test_what_cannot_be_steered_is_refused(bottom_half: str, status: int, text: str) -> None:
    with (
        Guest(find_qemu(), firmware="idle") as guest,
        started("steer", guest.pid, "--run-on", "vcpu", "--bh", bottom_half) as steering,
    ):
        found, _result, err = steering.result()
        assert found == status
        assert text in err
        assert_runs_on(guest)


def test_a_hold_that_would_be_an_outage_is_refused() -> None:
    with started("steer", os.getpid(), "--run-on", "main", "--hold", "2s") as steering:
        status, _result, err = steering.result()
    assert status == 2
    assert "at most 1s" in err
