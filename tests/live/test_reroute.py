"""``qtrace reroute``: scheduled elsewhere for as long as it lasts, and not a moment longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.errors import HasEnded
from qtrace.experiment.reroute import Rerouting
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from qtrace.trace.reader import read_trace
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attached, save, watched_half
from tests.live.support.experimenting import WATCHED, in_force, started
from tests.live.support.ptraced import assert_runs_on, refuse_ptrace, tracer_of, until

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

COUNT = 7


@pytest.mark.bpf
def test_it_goes_into_the_other_context_and_no_vcpu_runs_it(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(qemu_binary, accel, idle_sockets=200) as guest:
        with attached(guest.pid, "--backend", "ebpf", "-o", trace) as attach:
            with in_force("reroute", guest.pid, "--to", "iohandler") as rerouting:
                save(guest, 10 * COUNT)
                status, result, err = rerouting.end()
            assert_code_of_a_recording_only(err)
            save(guest, COUNT)
            _status, report, _err = attach.end()
        assert_runs_on(guest)
    assert status == 0
    assert len(result["reroutes"]) == 10 * COUNT
    assert {one["came_from"] for one in result["reroutes"]} == {"main"}
    assert result["problems"] == []
    frame = read_trace(trace).frame
    schedules = frame.loc[frame["event"] == "schedule", "context"].tolist()
    assert schedules == ["iohandler"] * 10 * COUNT + ["main"] * COUNT
    runs = frame[frame["event"] == "run"].head(10 * COUNT)
    assert set(runs["role"]) == {"main"}
    assert set(runs["context"]) == {"iohandler"}
    assert watched_half(report)["scheduled"] == 11 * COUNT


def test_count_ends_it(accel: Accelerator) -> None:
    with Guest(find_qemu(), accel) as guest:
        with in_force("reroute", guest.pid, "--to", "iohandler", "--count", 2) as rerouting:
            status, result, _err = rerouting.save_until_done(guest)
        assert_runs_on(guest)
    assert (status, result["ended_by"], len(result["reroutes"])) == (0, "done", 2)


def test_the_time_limit_ends_it_and_tells_that_the_count_was_not_reached() -> None:
    options = ("--to", "main", "--count", 2, "--timeout", "300ms")
    with Guest(find_qemu()) as guest:
        with started("reroute", guest.pid, *options) as rerouting:
            status, result, err = rerouting.result()
        assert_runs_on(guest)
    assert (status, result["ended_by"], result["reroutes"]) == (4, "time-out", [])
    assert "WARNING: this changes process" in err


@pytest.mark.parametrize("whom", ["qtrace", "gdb", "both"])
def test_the_guest_outlives_sigkill(accel: Accelerator, whom: str) -> None:
    with Guest(find_qemu(), accel) as guest:
        with in_force("reroute", guest.pid, "--to", "iohandler") as rerouting:
            save(guest, 3)
            gdb = tracer_of(guest.pid)
            if whom != "gdb":
                rerouting.process.kill()
            if whom != "qtrace":
                os.kill(gdb, signal.SIGKILL)
            rerouting.process.wait()
        until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
        assert_runs_on(guest)
        save(guest, 2)


def test_an_unknown_bottom_half_or_context_is_refused() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        for options, text in (
            (("--bh", "snapshot_sav", "--to", "main"), WATCHED),
            (("--to", "nowhere"), "'iohandler'"),
        ):
            with started("reroute", guest.pid, *options) as rerouting:
                status, _result, err = rerouting.result()
            assert status == 2
            assert text in err


def test_where_ptrace_is_refused_it_says_so_and_touches_nothing() -> None:
    with Guest(find_qemu()) as guest:
        run = subprocess.run(
            [sys.executable, "-m", "qtrace", "reroute", "--pid", str(guest.pid), "--bh", WATCHED,
             "--to", "main"],
            text=True, capture_output=True, timeout=TIMEOUT_S, preexec_fn=refuse_ptrace,
        )  # fmt: skip
        assert_runs_on(guest)
    assert (run.returncode, run.stdout) == (3, "")
    assert f"gdb may not attach to process {guest.pid}" in run.stderr
    assert "Traceback" not in run.stderr


def assert_code_of_a_recording_only(err: str) -> None:
    """Only eBPF's uprobes are left in the code."""
    assert "undone" in err
    assert "warning" not in err


def test_a_target_that_ends_before_it_is_attached_to_has_ended() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        rerouting = Rerouting(LiveQemu(Process(guest.pid)), WATCHED, "iohandler")
        os.kill(guest.pid, signal.SIGKILL)
        os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(HasEnded), rerouting:
            pass
