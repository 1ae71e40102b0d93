"""``qtrace inspect --gdb`` holds the guest while one look is taken, and always lets it go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.gdb.target_state import is_traced_or_stopped
from qtrace.inspection.held_look import look_while_stopped
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from tests.live.support.dead_fuse import SLEEPERS, Sleeper, guest_on, threads_in_fuse
from tests.live.support.gdb_cases import everywhere
from tests.live.support.inspecting import functions, inspect, thread
from tests.live.support.ptraced import assert_runs_on, until

pytestmark = pytest.mark.qemu

HOLDS = 10
# Holds the process until it is killed.
HOLD = """
import sys, time
from qtrace.inspection import looker as look, held_look as stopped
from qtrace.process.process import Process
take = look.Looker.look
def slowly(self, **options):
    if self.source.registers:
        print("held", flush=True)
        time.sleep(60)
    return take(self, **options)
look.Looker.look = slowly
stopped.look_while_stopped(Process(int(sys.argv[1])))
"""


@everywhere
def test_running_threads_are_shown_and_the_guest_goes_on(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel) as guest:
        status, document, _err = inspect("--pid", guest.pid, "--gdb")
        assert status == 0
        assert 0 < document["paused_ms"] < 1000
        assert not document["stopped"]
        (cpu,) = guest.qmp.command("query-cpus-fast")
        stack = functions(thread(document, cpu["thread-id"])["stack"])
        assert "cpu_exec" in stack or "kvm_cpu_exec" in stack
        assert_runs_on(guest)


@everywhere
def test_signals_that_come_while_it_is_held_arrive(qemu_binary: Path, accel: Accelerator) -> None:
    """QEMU kicks its vCPU threads by SIGUSR1; a lost one would leave it stopped half-way."""
    with Guest(qemu_binary, accel) as guest:
        for _ in range(HOLDS):
            guest.qmp.command("stop")
            assert not look_while_stopped(Process(guest.pid)).look.stopped
            guest.qmp.command("cont")
            held = look_while_stopped(Process(guest.pid))
            assert all(t.frames for t in held.look.threads if not t.kernel)
        assert_runs_on(guest)


def test_a_process_that_is_stopped_stays_so() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        os.kill(guest.pid, signal.SIGSTOP)
        until(lambda: state(guest.pid) == "T", "the stop")
        status, document, _err = inspect("--pid", guest.pid, "--gdb")
        assert status == 4
        assert document["held"] == "stopped by a signal (SIGSTOP)"
        until(lambda: not Process(guest.pid).tracer(), "being let go")
        assert state(guest.pid) == "T"
        os.kill(guest.pid, signal.SIGCONT)
        assert_runs_on(guest)


def test_when_qtrace_is_killed_the_kernel_lets_go() -> None:
    with Guest(find_qemu()) as guest:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(guest.pid)], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert Process(guest.pid).tracer()
        holder.kill()
        holder.communicate()
        assert_runs_on(guest)


def test_a_process_that_may_not_be_traced_is_refused() -> None:
    with Guest(find_qemu(), firmware="idle") as guest:
        run = subprocess.run(
            ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace",
             sys.executable, "-m", "qtrace", "inspect", "--pid", str(guest.pid), "--gdb"],
            text=True, capture_output=True,
        )  # fmt: skip
        assert run.returncode == 3
        assert "root" in run.stderr
        assert "Traceback" not in run.stderr
        assert_runs_on(guest)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.fuse
@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_a_thread_that_cannot_stop_is_named_and_holds_nobody_up(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path, sleeper: Sleeper
) -> None:
    """It goes on when its file system does, and has not been stopped by anybody then."""
    with guest_on(qemu_binary, accel, tmp_path) as (guest, file):
        tid = file.put_to_sleep(guest, sleeper)
        _status, document, _err = inspect("--pid", guest.pid, "--gdb")
        assert [t["tid"] for t in document["did_not_stop"]] == [tid]
        assert functions(thread(document, tid)["stack"])
        until(lambda: not is_traced_or_stopped(guest.pid), "being let go")
        assert Process(guest.pid).tracer() == 0
        assert list(threads_in_fuse(guest.pid)) == [tid]
        if sleeper != "main":
            assert_runs_on(guest)
        file.thaw()
        assert_runs_on(guest)
        assert threads_in_fuse(guest.pid) == {}
