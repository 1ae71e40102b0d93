"""gdb is killed while a thread stands at a breakpoint: at any step of how gdb deals with that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from qtrace.gdb.target_state import thread_states
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.lab.snapshot_jobs import save_round
from qtrace.machine import ptrace
from qtrace.record.ebpf.bcc_module import load_bcc
from qtrace.record.ebpf.kernel_headers import prepare_headers
from tests.limits import TIMEOUT_S
from tests.live.support.attached import save
from tests.live.support.experimenting import Experimenting, in_force
from tests.live.support.ptraced import assert_runs_on, children, tracer_of, until

pytestmark = [pytest.mark.gdb, pytest.mark.qemu]

WAIT4 = 61
# A gdb that makes no system call for so long has let the thread run on.
IDLE_S = 0.5
FORK = get_context("fork")
# Longer than a killed gdb lives.
LATER_S = 0.02
# Tells of a SIGTRAP that a thread gets by what it executes, before the thread knows of it.
TRAPS = r"""
BPF_RINGBUF_OUTPUT(traps, 1);
RAW_TRACEPOINT_PROBE(signal_generate) {
    if (ctx->args[0] == SIGTRAP && (u32)bpf_get_current_pid_tgid() == THREAD) {
        u32 thread = THREAD;
        traps.ringbuf_output(&thread, sizeof thread, 0);
    }
    return 0;
}
"""


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
            rerouting.process.wait(TIMEOUT_S)
            until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
        assert_runs_on(guest)
        save_round(guest.qmp, "after")


def test_a_gdb_that_holds_a_thread_for_too_long_is_ended(accel: Accelerator) -> None:
    """It is frozen, as if it hung."""
    with Guest(find_qemu(), accel) as guest, rerouted(guest) as (rerouting, gdb):
        os.kill(gdb, signal.SIGSTOP)
        until(lambda: thread_states(gdb)[gdb] == "T", "gdb's stop")
        with saving(guest):
            status, _result, err = rerouting.result()
        assert status == 3
        assert "gave up, and ended gdb: it had held the process for 3." in err
        assert_runs_on(guest)
        save_round(guest.qmp, "after")


def test_a_stop_that_gdb_has_only_collected_is_not_the_guests_end(
    qemu_binary: Path, accel: Accelerator
) -> None:
    """The program counter is still one byte into the instruction."""
    with Guest(qemu_binary, accel) as guest:
        killed_after(guest, 0)


@pytest.mark.bcc
def test_a_thread_that_has_not_come_as_far_as_its_stop_is_not_the_guests_end(
    accel: Accelerator,
) -> None:
    """It has executed the breakpoint, and somebody of a higher priority has its processor since."""
    with Guest(find_qemu(), accel) as guest, rerouted(guest) as (rerouting, gdb):
        ready = FORK.Event()
        killer = FORK.Process(target=kill_behind_a_trap, args=(guest.pid, gdb, ready))
        killer.start()
        assert ready.wait(TIMEOUT_S)
        while killer.is_alive():
            save_round(guest.qmp, "met")
        status, _result, err = rerouting.result()
        assert status == 3
        assert_runs_on(guest)
        save(guest, 2)
        assert "gdb left 1 threads in a stop: they were helped out" in err


def test_gdb_cannot_die_before_its_watchdog_has_acted(accel: Accelerator) -> None:
    """They share a processor, and the watchdog has the higher priority."""
    with Guest(find_qemu(), accel) as guest, rerouted(guest) as (rerouting, gdb):
        both = gdb, watchdog_of(rerouting, gdb)
        assert len(os.sched_getaffinity(gdb)) == 1
        assert len({frozenset(os.sched_getaffinity(pid)) for pid in both}) == 1
        priorities = [os.sched_getparam(pid).sched_priority for pid in both]
        assert 0 < priorities[0] < priorities[1]


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
        assert "gdb left 1 breakpoints: they were taken out" in err
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
        ptrace.wait_stop(gdb, TIMEOUT_S)
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
            rerouting.process.wait(TIMEOUT_S)
            until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
    assert_runs_on(guest)
    save_round(guest.qmp, "after")
    return busy


def kill_behind_a_trap(thread: int, gdb: int, ready: Event) -> None:
    """Kill gdb when a thread has a SIGTRAP before it and waits for a processor: for ours.

    To be run in a process of its own, as no other thread of it may be waited for.
    """
    prepare_headers()
    text = TRAPS.replace("THREAD", str(thread)).replace("SIGTRAP", str(int(signal.SIGTRAP)))
    bpf = load_bcc().BPF(text=text.encode())
    killed = False

    def trapped(*_: object) -> None:
        nonlocal killed
        stat = Path(f"/proc/{thread}/stat").read_bytes().rpartition(b")")[2].split()
        if killed or stat[0] != b"R" or not int(stat[28]) >> (signal.SIGTRAP - 1) & 1:
            return
        os.kill(gdb, signal.SIGKILL)
        killed = True
        began = time.monotonic()
        while time.monotonic() - began < LATER_S:
            pass

    bpf[b"traps"].open_ring_buffer(trapped)
    processors = os.sched_getaffinity(thread)
    os.sched_setaffinity(thread, {max(processors)})
    # This process takes the thread's processor at the very moment that it is told.
    os.sched_setaffinity(0, {max(processors)})
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    ready.set()
    while not killed and Path(f"/proc/{thread}").exists():
        bpf.ring_buffer_poll(100)
    with suppress(ProcessLookupError):
        os.sched_setaffinity(thread, processors)


def has_collected_a_trap(gdb: int) -> bool:
    """Whether it is at the end of a wait4() that told of a SIGTRAP."""
    registers = ptrace.get_registers(gdb)
    if registers["orig_rax"] != WAIT4 or not 0 < registers["rax"] < 1 << 31:
        return False
    with open(f"/proc/{gdb}/mem", "rb", buffering=0) as memory:
        memory.seek(registers["rsi"])
        status = int.from_bytes(memory.read(4), "little")
    return os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP


def to_system_call(tid: int, limit_s: float = TIMEOUT_S) -> None:
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
