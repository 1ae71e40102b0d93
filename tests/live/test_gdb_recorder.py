"""``qtrace attach --backend gdb``: what eBPF records, and a guest that outlives all of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from qtrace.trace.reader import read_trace
from tests.live.support.attached import attach_command, attached, refused, save, watched_half
from tests.live.support.ptraced import assert_runs_on, tracer_of, until

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

ROOT = Path(__file__).parents[2]
GDB = ("--backend", "gdb")
ROUNDS = 23
PAUSE_LIMIT_MS = 500.0
BY_CHANCE = ("verdicts", "roles", "late_replies")


def test_every_schedule_and_run_is_recorded_and_the_guest_hardly_paused(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel) as guest:
        with attached(guest.pid, *GDB) as attach:
            save(guest, ROUNDS)
            _status, report, err = attach.end()
        assert_runs_on(guest)
    half = watched_half(report)
    assert (report["complete"], report["lost_events"]) == (True, 0)
    assert half["scheduled"] == sum(half["verdicts"].values()) == ROUNDS
    assert set(half["verdicts"]) <= {"main-loop", "vcpu-poll"}
    pauses = [float(ms) for ms in re.findall(r"paused for ([\d.]+) ms", err)]
    assert pauses
    assert max(pauses) < PAUSE_LIMIT_MS
    assert "warning" not in err


@pytest.mark.bpf
def test_rows_and_verdicts_are_those_of_ebpf(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    reports, rows = {}, {}
    with Guest(qemu_binary, accel, idle_sockets=200) as guest:
        for backend in ("gdb", "ebpf"):
            trace = tmp_path / f"{backend}.csv"
            with attached(guest.pid, "--backend", backend, "-o", trace) as attach:
                while not _seen_on_vcpu(trace):
                    save(guest, 5)
                _status, reports[backend], _err = attach.end()
            rows[backend] = read_trace(trace).frame
    finding = {name: watched_half(report)["findings"][0] for name, report in reports.items()}
    assert reports["gdb"]["verdict"] == reports["ebpf"]["verdict"] == "vcpu-poll"
    for key in ("verdict", "role", "thread", "tid", "context", "deciding_frame", "device_frame"):
        assert finding["gdb"][key] == finding["ebpf"][key]
    assert finding["gdb"]["scheduled_stack"] == finding["ebpf"]["scheduled_stack"]
    depth = finding["ebpf"]["device_frame"] + 1
    assert finding["gdb"]["stack"][:depth] == finding["ebpf"]["stack"][:depth]
    for event in ("schedule", "run", "call"):
        columns = ["name", "context", "ctx", "callback"]
        kinds = [
            set(frame.loc[frame["event"] == event, columns].itertuples(index=False, name=None))
            for frame in rows.values()
        ]
        assert kinds[0] == kinds[1]
    assert set(reports["gdb"]) == set(reports["ebpf"])
    assert _keys(reports["gdb"]) == _keys(reports["ebpf"])


def test_the_targets_death_ends_the_recording_and_is_reported(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid, *GDB, "-o", trace) as a:
        save(guest, 5)
        os.kill(guest.pid, signal.SIGKILL)
        status, report, err = a.result()
    assert status == 0
    assert watched_half(report)["verdicts"] == {"main-loop": 5}
    assert read_trace(trace).exit == {"signal": signal.SIGKILL}
    assert "warning" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_recording_and_detaches(number: signal.Signals) -> None:
    with Guest(find_qemu()) as guest:
        with attached(guest.pid, *GDB) as attach:
            save(guest, 3)
            _status, report, err = attach.end(number)
        assert watched_half(report)["scheduled"] == 3
        assert "warning" not in err
        assert_runs_on(guest)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_guest_outlives_the_end_of_gdb_and_the_loss_is_shown(
    accel: Accelerator, number: signal.Signals, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    with Guest(find_qemu(), accel) as guest:
        with attached(guest.pid, *GDB, "-o", trace) as attach:
            save(guest, 3)
            os.kill(tracer_of(guest.pid), number)
            status, report, err = attach.result()
        assert (status, report) == (3, {})
        assert "gdb has died" in err
        assert_runs_on(guest)
        save(guest, 3)
    read = read_trace(trace)
    assert read.lost_events == 1
    own = read.frame[read.frame["name"] == "snapshot_save_job_bh"]
    assert own["event"].astype(str).value_counts().to_dict() == {
        "schedule": 3,
        "run": 3,
        "return": 3,
    }


def test_the_guest_outlives_sigkill_of_qtrace_and_of_both(accel: Accelerator) -> None:
    with Guest(find_qemu(), accel) as guest:
        for gdb_too in (False, True):
            with attached(guest.pid, *GDB) as attach:
                save(guest, 3)
                gdb = tracer_of(guest.pid)
                attach.process.kill()
                if gdb_too:
                    os.kill(gdb, signal.SIGKILL)
                attach.process.wait()
            until(lambda gdb=gdb: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
            assert_runs_on(guest)
            save(guest, 3)


def test_a_guest_that_somebody_stops_meanwhile_stays_stopped() -> None:
    with Guest(find_qemu()) as guest:
        with attached(guest.pid, *GDB) as attach:
            os.kill(guest.pid, signal.SIGSTOP)
            status, _report, err = attach.result()
        assert status == 3
        assert "SIGSTOP" in err
        assert Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        os.kill(guest.pid, signal.SIGCONT)
        assert_runs_on(guest)


def test_a_traced_process_is_refused_and_its_tracer_named() -> None:
    with Guest(find_qemu()) as guest:
        with attached(guest.pid, *GDB) as attach:
            status, err = refused(guest.pid, *GDB)
            assert status == 3
            assert f"process {tracer_of(guest.pid)} (gdb)" in err
            save(guest, 2)
            assert watched_half(attach.end()[1])["scheduled"] == 2
        assert_runs_on(guest)


def test_a_stopped_process_is_refused_and_stays_stopped() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        os.kill(guest.pid, signal.SIGSTOP)
        status, err = refused(guest.pid, *GDB)
        assert status == 3
        assert "kill -CONT" in err
        assert Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        os.kill(guest.pid, signal.SIGCONT)


@pytest.mark.bpf
def test_sites_that_ebpf_has_probes_at_are_refused() -> None:
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid) as attach:
        status, err = refused(guest.pid, *GDB)
        assert status == 3
        assert "has a probe at" in err
        save(guest, 2)
        assert watched_half(attach.end()[1])["scheduled"] == 2


def test_auto_takes_gdb_where_ebpf_is_not_to_be_had_and_says_why() -> None:
    without = "-sys_admin,-bpf,-perfmon"
    with Guest(find_qemu()) as guest:
        run = subprocess.run(
            ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}",
             *attach_command(guest.pid, "--duration", "300ms")],
            cwd=ROOT, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert_runs_on(guest)
    assert run.returncode == 0, run.stderr
    first, second = run.stderr.splitlines()[:2]
    assert first.startswith("recording")
    assert " by gdb " in first
    assert "eBPF cannot be used" in second
    assert "CAP_SYS_ADMIN" in second


def test_without_gdb_the_remedy_is_named(tmp_path: Path) -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = _refused_with(guest.pid, tmp_path)
    assert status == 3
    assert "gdb is not installed" in err


def test_a_gdb_whose_python_does_not_work_is_refused(tmp_path: Path) -> None:
    gdb = tmp_path / "gdb"
    gdb.write_text('#!/bin/sh\nPYTHONHOME=/nonexistent exec /usr/bin/gdb "$@"\n')
    gdb.chmod(0o755)
    with Guest(find_qemu(), firmware="idle") as guest:
        status, err = _refused_with(guest.pid, tmp_path)
        assert Process(guest.pid).tracer() == 0
    assert status == 3
    assert "gdb" in err
    assert "remedy" in err


def _seen_on_vcpu(trace: Path) -> bool:
    return ",vcpu,snapshot_save_job_bh," in trace.read_text()


def _keys(value: Any) -> Any:
    """The shape of a report, but for what chance decides."""
    if isinstance(value, dict):
        return {key: _keys(value[key]) for key in value if key not in BY_CHANCE}
    return [_keys(value[0])] if isinstance(value, list) and value else type(value).__name__


def _refused_with(pid: int, path: Path) -> tuple[int, str]:
    """An attach whose PATH is one folder."""
    run = subprocess.run(
        attach_command(pid, *GDB), cwd=ROOT, env=os.environ | {"PATH": str(path)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in run.stderr
    return run.returncode, run.stderr


@pytest.mark.bpf
def test_sites_that_gdb_has_breakpoints_at_are_refused_by_ebpf() -> None:
    """The kernel would take them for its own, and take them out at the end."""
    with Guest(find_qemu(), firmware="idle") as guest, attached(guest.pid, *GDB) as attach:
        status, err = refused(guest.pid)
        assert status == 3
        assert "(gdb) traces process" in err
        assert "has a breakpoint where a probe would be" in err
        save(guest, 2)
        assert watched_half(attach.end()[1])["scheduled"] == 2


def test_a_breakpoint_that_somebody_took_out_leaves_no_verdict() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        module = Process(guest.pid).binary
        with attached(guest.pid, *GDB) as attach:
            save(guest, 2)
            address = module.symbols.address("save_snapshot")
            with open(f"/proc/{guest.pid}/mem", "r+b", buffering=0) as memory:
                memory.seek(address + module.bias)
                memory.write(module.elf.read(address, 1))
            status, report, err = attach.end()
        assert_runs_on(guest)
    assert (status, report["verdict"], report["lost_events"]) == (4, "inconclusive", 1)
    assert "somebody has taken out the probe 'call save_snapshot'" in err
