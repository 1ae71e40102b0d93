"""A stock QEMU that is told to stop while a vCPU thread waits for a write that never ends.

The main thread sleeps in open(2) with the BQL until the vCPU thread stands in its next device
access, waiting for it. ``stop`` comes in the same turn of the main loop, so that nobody gets the
BQL before pause_all_vcpus() lets go of it; the vCPU thread then ends what it has begun: a write
to a flash chip that polls for its request, or one to a console that tries again and again.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrace.gdb.target_state import thread_states
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest
from qtrace.process.process import Process
from qtrace.qemu.aio.waits import BIG_LOCK
from tests.limits import TIMEOUT_S
from tests.live.support.blocked_main import Monitor, guest_with_monitors
from tests.live.support.writing import (
    DEBUG_CONSOLE,
    PIPE_BYTES,
    device_at,
    firmware_writing_to,
    open_pipe,
    pipe_is_full,
)

# Two guests of three wait for a write to the chip's registers, which programs nothing. A second try
# in the same guest is worth little: its writes and the main thread go in step by then.
GUESTS = 60
# Where a vCPU thread sleeps that has stopped.
STOPPED = "qemu_wait_io_event"
# What is on its stack in a device access.
ACCESS = "address_space_"
# So often a reader sees whether it is to stop.
READ_S = 0.01
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
ALL = 0x40000000  # __WALL
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def paused_behind_a_write(qemu: Path, accel: Accelerator) -> Iterator[tuple[Guest, int]]:
    """The guest, and its vCPU thread's tid. Stays so until the end."""
    for _ in range(GUESTS):
        with (
            guest_with_monitors(qemu, accel, "pflash") as guest,
            Monitor(guest, 0) as sleeper,
            Monitor(guest, 1) as stopper,
        ):
            (cpu,) = guest.qmp.command("query-cpus-fast")
            tid = cpu["thread-id"]
            with _stopped(guest.pid, tid, sleeper, stopper) as in_the_write:
                if in_the_write:
                    yield guest, tid
                    return
    raise AssertionError(f"no write programmed a byte in {GUESTS} guests")


@contextmanager
def _stopped(pid: int, tid: int, sleeper: Monitor, stopper: Monitor) -> Iterator[bool]:
    """``stop`` comes while a vCPU thread waits for the BQL; whether that was for such a write."""
    looker = Looker(LiveQemu(Process(pid)))

    def functions(thread: int) -> set[str]:
        return set(looker.thread(thread, "").functions)

    def in_the_write() -> bool:
        return "pause_all_vcpus" in functions(pid) and "aio_poll" in functions(tid)

    def came_too_late() -> bool:
        """``stop`` waits for a later turn of the main loop, and that for the write."""
        main = functions(pid)
        behind = BIG_LOCK & main and "pause_all_vcpus" not in main
        return bool(behind) and "aio_poll" in functions(tid)

    def over() -> bool:
        return in_the_write() or STOPPED in functions(tid) or came_too_late()

    _sleep_before_stop(pid, sleeper, stopper)
    _until(lambda: bool(BIG_LOCK & functions(tid)), "the vCPU's wait for the BQL")
    workers = [t for t, name in looker.source.threads().items() if name == "worker"]
    _until(lambda: all(functions(worker) for worker in workers), "the last write's end")
    with held(workers):
        sleeper.open_fifo()
        # Only some of the guest's writes to the chip's registers program a byte.
        _until(over, "the pause")
        yield in_the_write()


@contextmanager
def paused_behind_a_console(
    qemu: Path, accel: Accelerator, folder: Path
) -> Iterator[tuple[Guest, int]]:
    """The guest, and its vCPU thread's tid, which tries to write into a full pipe, with the BQL.
    Stays so until the end, on each QEMU."""
    for number in range(GUESTS):
        pipe = folder / f"console{number}"
        end = open_pipe(pipe)
        try:
            with (
                Reader(end) as reader,
                guest_with_monitors(
                    qemu, accel, kind=Writing, extra_args=device_at(DEBUG_CONSOLE, pipe)
                ) as guest,
                Monitor(guest, 0) as sleeper,
                Monitor(guest, 1) as stopper,
            ):
                (cpu,) = guest.qmp.command("query-cpus-fast")
                tid = cpu["thread-id"]
                if _paused_in_a_write(guest.pid, tid, sleeper, stopper, reader):
                    yield guest, tid
                    return
        finally:
            os.close(end)
    raise AssertionError(f"no write was waiting in {GUESTS} guests")


def _paused_in_a_write(
    pid: int, tid: int, sleeper: Monitor, stopper: Monitor, reader: Reader
) -> bool:
    """``stop`` comes while a vCPU thread waits for the BQL; whether that was for its write, and not
    as it came back from its guest, and whether the other command had come first."""
    looker = Looker(LiveQemu(Process(pid)))

    def functions(thread: int) -> set[str]:
        return set(looker.thread(thread, "").functions)

    _sleep_before_stop(pid, sleeper, stopper)
    _until(lambda: (BIG_LOCK | {STOPPED}) & functions(tid), "the vCPU's wait for the BQL")
    waits = functions(tid)
    if STOPPED in waits or not any(name.startswith(ACCESS) for name in waits):
        return False
    reader.stop()
    _until(lambda: pipe_is_full(reader.end), "a full pipe")
    sleeper.open_fifo()
    _until(lambda: "pause_all_vcpus" in functions(pid), "the pause")
    return True


class Writing(Guest):
    """Its guest writes to the debug console for ever."""

    def _image(self) -> bytes:
        return firmware_writing_to(DEBUG_CONSOLE)


class Reader:
    """Takes what comes into a pipe until it is told to stop."""

    def __init__(self, end: int) -> None:
        self.end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.is_set():
            if select.select([self.end], [], [], READ_S)[0]:
                os.read(self.end, PIPE_BYTES)


def _sleep_before_stop(pid: int, sleeper: Monitor, stopper: Monitor) -> None:
    """The main thread sleeps in one monitor's command; the other's ``stop`` comes next, in the
    same turn of the main loop."""
    sleeper.type_command()
    stopper.type_command(b"stop")
    # Both newlines are there before the main loop looks for any.
    os.kill(pid, signal.SIGSTOP)
    _until(lambda: thread_states(pid)[pid] == "T", "its stop")
    sleeper.enter()
    stopper.enter()
    os.kill(pid, signal.SIGCONT)
    sleeper.wait_asleep()


@contextmanager
def held(tids: list[int]) -> Iterator[None]:
    """Threads that do not run meanwhile."""
    for tid in tids:
        _ptrace(SEIZE, tid)
        _ptrace(INTERRUPT, tid)
        os.waitpid(tid, ALL)
    try:
        yield
    finally:
        for tid in tids:
            _ptrace(DETACH, tid)


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(request, tid, None, None):
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}, {tid})")


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)
