"""gdb is killed while a thread stands at a breakpoint: at any step of how gdb deals with that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from qtrace.gdb.state import thread_states
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.lab.jobs import save_round
from qtrace.target import ptrace
from tests.live.attached import save
from tests.live.experimenting import Experimenting, in_force
from tests.live.ptraced import assert_runs_on, children, tracer_of, until

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

WAIT4 = 61
LIMIT_S = 20.0
# A gdb that makes no system call for so long has let the thread run on.
IDLE_S = 0.5


@pytest.mark.parametrize("whom", ["gdb", "both"])
def test_a_stop_that_gdb_never_learned_of_is_not_the_guests_end(
    qemu_binary: Path, accel: Accelerator, whom: str
) -> None:
    """gdb is frozen, so that it cannot collect the stop; then it is killed."""
    with Guest(qemu_binary, accel) as guest, rerouted(guest) as (rerouting, gdb):
        os.kill(gdb, signal.SIGSTOP)
        until(lambda: thread_states(gdb)[gdb] == "T", "gdb's stop")
        with saving(guest):
            until(lambda: "t" in thread_states(guest.pid).values(), "a thread at the breakpoint")
            if whom == "both":
                rerouting.process.kill()
            os.kill(gdb, signal.SIGKILL)
            rerouting.process.wait(LIMIT_S)
            until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
        assert_runs_on(guest)
        save_round(guest.qmp, "after")


def test_a_stop_that_gdb_has_only_collected_is_not_the_guests_end(
    qemu_binary: Path, accel: Accelerator
) -> None:
    """The program counter is still one byte into the instruction."""
    with Guest(qemu_binary, accel) as guest:
        killed_after(guest, 0)


def test_without_its_watchdog_gdb_detaches(accel: Accelerator) -> None:
    with Guest(find_qemu(), accel) as guest, rerouted(guest) as (rerouting, gdb):
        os.kill(watchdog_of(rerouting, gdb), signal.SIGKILL)
        status, _result, err = rerouting.result()
        assert status == 3
        assert "watchdog has died (gdb has detached)" in err
        assert_runs_on(guest)
        save(guest, 2)


def test_where_gdb_and_watchdog_are_killed_qtrace_itself_puts_the_code_back(
    accel: Accelerator,
) -> None:
    """Nobody meets a breakpoint meanwhile: that would be the guest's end."""
    with Guest(find_qemu(), accel) as guest, rerouted(guest) as (rerouting, gdb):
        rerouting.process.send_signal(signal.SIGSTOP)
        for pid in (watchdog_of(rerouting, gdb), gdb):
            os.kill(pid, signal.SIGKILL)
        rerouting.process.send_signal(signal.SIGCONT)
        status, _result, err = rerouting.result()
        assert status == 3
        assert "has died (gdb left 1 breakpoints: they were taken out)" in err
        assert_runs_on(guest)
        save(guest, 2)


@pytest.mark.soak
def test_gdb_may_be_killed_at_any_step_of_a_stop(
    qemu_binary: Path, accel: Accelerator, soak_row: Callable[..., None]
) -> None:
    steps = 0
    with Guest(qemu_binary, accel) as guest:
        while killed_after(guest, steps):
            steps += 1
    soak_row("kills at each system call of a stop", f"{steps} of {steps}")
    assert steps


def killed_after(guest: Guest, steps: int) -> bool:
    """Kill gdb so many system calls after it has collected a stop; whether it made so many."""
    busy = True
    with rerouted(guest) as (rerouting, gdb):
        ptrace.ptrace(ptrace.SEIZE, gdb, 0, ptrace.TRACESYSGOOD)
        ptrace.ptrace(ptrace.INTERRUPT, gdb)
        ptrace.wait_stop(gdb, LIMIT_S)
        with saving(guest):
            while not has_collected_a_trap(gdb):
                to_system_call(gdb)
            with suppress(TimeoutError):
                for _ in range(2 * steps):
                    busy = False
                    to_system_call(gdb, IDLE_S)
                    busy = True
            os.kill(gdb, signal.SIGKILL)
            os.waitpid(gdb, ptrace.ALL_THREADS)
            rerouting.process.wait(LIMIT_S)
            until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
    assert_runs_on(guest)
    save_round(guest.qmp, "after")
    return busy


def has_collected_a_trap(gdb: int) -> bool:
    """Whether it is at the end of a wait4() that told of a SIGTRAP."""
    registers = ptrace.get_registers(gdb)
    if registers["orig_rax"] != WAIT4 or not 0 < registers["rax"] < 1 << 31:
        return False
    with open(f"/proc/{gdb}/mem", "rb", buffering=0) as memory:
        memory.seek(registers["rsi"])
        status = int.from_bytes(memory.read(4), "little")
    return os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP


def to_system_call(tid: int, limit_s: float = LIMIT_S) -> None:
    """On to the next entry or exit of a system call; signals are passed on."""
    number = 0
    while True:
        ptrace.ptrace(ptrace.SYSCALL, tid, 0, number)
        status = ptrace.wait_stop(tid, limit_s)
        number = os.WSTOPSIG(status)
        if number == ptrace.SYSCALL_STOP:
            return
        if status >> 16:
            number = 0


@contextmanager
def rerouted(guest: Guest) -> Iterator[tuple[Experimenting, int]]:
    """A reroute in force, and its gdb."""
    with in_force("reroute", guest.pid, "--to", "iohandler") as rerouting:
        save(guest, 2)
        yield rerouting, tracer_of(guest.pid)


def watchdog_of(rerouting: Experimenting, gdb: int) -> int:
    (watchdog,) = set(children(rerouting.process.pid)) - {gdb}
    return watchdog


@contextmanager
def saving(guest: Guest) -> Iterator[None]:
    """One save under way, that has ended well afterwards."""
    thread = threading.Thread(target=save_round, args=(guest.qmp, "met"))
    thread.start()
    try:
        yield
    finally:
        thread.join()
