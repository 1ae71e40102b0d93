"""A stock QEMU that is told to stop while a vCPU thread waits for a write that never ends.

The main thread sleeps in open(2) with the BQL until the vCPU thread stands in its next device
access, waiting for it. ``stop`` comes in the same turn of the main loop, so that nobody gets the
BQL before pause_all_vcpus() lets go of it; the vCPU thread then ends what it has begun.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from qtrace.lab.guest import Accelerator, Guest
from qtrace.target.aio.waits import BIG_LOCK
from qtrace.target.live import LiveSource
from qtrace.target.look import Looker
from qtrace.target.process import Process
from tests.live.blocked_main import Monitor, guest_with_monitors

TIMEOUT_S = 30
TURNS = 50
# Where a vCPU thread sleeps that has stopped.
STOPPED = "qemu_wait_io_event"
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
ALL = 0x40000000  # __WALL
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def paused_behind_a_write(qemu: Path, accel: Accelerator) -> Iterator[tuple[Guest, int]]:
    """The guest, and its vCPU thread's tid. Stays so until the end."""
    with (
        guest_with_monitors(qemu, accel, "pflash") as guest,
        Monitor(guest, 0) as sleeper,
        Monitor(guest, 1) as stopper,
    ):
        looker = Looker(LiveSource(Process(guest.pid)))
        (cpu,) = guest.qmp.command("query-cpus-fast")
        tid = cpu["thread-id"]

        def functions(thread: int) -> set[str]:
            return set(looker.thread(thread, "").functions)

        def in_the_write() -> bool:
            return "pause_all_vcpus" in functions(guest.pid) and "aio_poll" in functions(tid)

        def all_sleep(tids: list[int]) -> bool:
            return all(functions(thread) for thread in tids)

        def writes_after(number: int) -> bool:
            return guest.flash_writes() != number

        for _turn in range(TURNS):
            sleeper.type_command()
            stopper.type_command(b"stop")
            # Both newlines are there before the main loop looks for any.
            os.kill(guest.pid, signal.SIGSTOP)
            sleeper.enter()
            stopper.enter()
            os.kill(guest.pid, signal.SIGCONT)
            sleeper.wait_asleep()
            _until(lambda: bool(BIG_LOCK & functions(tid)), "the vCPU's wait for the BQL")
            workers = [t for t, name in looker.source.threads().items() if name == "worker"]
            _until(partial(all_sleep, workers), "the last write's end")
            with _held(workers):
                sleeper.open_fifo()
                # Only some of the guest's writes to the chip's registers program a byte.
                _until(lambda: in_the_write() or STOPPED in functions(tid), "the pause")
                if in_the_write():
                    yield guest, tid
                    return
            for monitor in (sleeper, stopper):
                monitor.read_prompt()
            sleeper.close_fifo()
            written = guest.flash_writes()
            stopper.type_command(b"cont")
            stopper.enter()
            stopper.read_prompt()
            _until(partial(writes_after, written), "the guest's next write")
        raise AssertionError(f"no write programmed a byte in {TURNS} turns")


@contextmanager
def _held(tids: list[int]) -> Iterator[None]:
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


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)
