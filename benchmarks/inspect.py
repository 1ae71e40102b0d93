"""Looking at a live QEMU: what its guest loses, and what gdb costs it for the same answer."""

from __future__ import annotations

import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.pairs import Row, interval, qemus, ratios
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest
from qtrace.process.process import Process

WATCH = ("--watch", "0.1")
# Long enough for five looks: one is due at once, as the watch was held.
ACCELERATORS: tuple[Accelerator, ...] = ("tcg", "kvm")
WINDOW_S = 0.5
SWEEPS = 300
STARTS = 5
STOPS = 5
THREADS = 10
GDB = ("gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off")
PRINT = ("-ex", "thread apply all bt 20", "-ex", "detach")


def run(pairs: int) -> list[Row]:
    """The guest's work while it is watched, the cost of a look, and the pauses that gdb makes."""
    rows = []
    for version, qemu in qemus():
        for accel in ACCELERATORS:
            with Guest(qemu, accel) as guest:
                rows.append(_watched(f"{version} {accel}", guest, pairs))
        iothreads = [part for n in range(THREADS - 4) for part in ("-object", f"iothread,id=i{n}")]
        with Guest(qemu, "tcg", extra_args=iothreads) as guest:
            rows += [_sweep(version, guest.pid), _cold(version, guest.pid)]
        for accel in ACCELERATORS:
            with Guest(qemu, accel) as guest:
                rows += _pauses(f"{version} {accel}", guest)
    return rows


def _watched(name: str, guest: Guest, pairs: int) -> Row:
    generator = random.Random(2111)
    same: list[float] = []
    ours: list[float] = []
    with _watcher(guest.pid) as (watch, looks):

        def rate() -> float:
            # A busy host may give the guest no time at all for once: nothing to compare with.
            while not (value := _writes_per_second(guest)):
                pass
            return value

        def watched() -> float:
            watch.send_signal(signal.SIGCONT)
            try:
                return _writes_per_second(guest)
            finally:
                watch.send_signal(signal.SIGSTOP)

        for _ in range(pairs):
            same += ratios(1, rate, rate, generator)
            ours += ratios(1, watched, rate, generator)
    low, high = interval(same, generator)
    return (
        f"{name}: pflash polls/s, inspect {' '.join(WATCH)}",
        f"{pairs} pairs, {len(looks) / pairs / WINDOW_S:.1f} looks/s",
        f"{statistics.median(ours):.3f}",
        f"A/A {statistics.median(same):.3f} [{low:.3f}, {high:.3f}]",
        "inside the A/A interval, or 0.98",
    )


def _writes_per_second(guest: Guest) -> float:
    """The guest's device writes, an aio_poll() each."""
    before, began = guest.flash_writes(), time.monotonic()
    time.sleep(WINDOW_S)
    return (guest.flash_writes() - before) % (1 << 32) / (time.monotonic() - began)


@contextmanager
def _watcher(pid: int) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """An ``inspect --watch`` that has started, and is held until it is let go; its lines."""
    watch = subprocess.Popen([*_command(pid), *WATCH], text=True, stdout=subprocess.PIPE, bufsize=1)
    assert watch.stdout is not None
    watch.stdout.readline()
    watch.send_signal(signal.SIGSTOP)
    looks: list[str] = []
    reader = threading.Thread(target=looks.extend, args=(watch.stdout,))
    reader.start()
    try:
        yield watch, looks
    finally:
        watch.kill()
        watch.wait()
        reader.join()


def _sweep(version: str, pid: int) -> Row:
    looker = Looker(LiveQemu(Process(pid)))
    threads = len(looker.look().threads)
    took = []
    for _ in range(SWEEPS):
        began = time.perf_counter()
        looker.look()
        took.append(time.perf_counter() - began)
    return (
        f"{version}: warm look at {threads} threads and all contexts",
        f"{statistics.median(took) * 1e3:.2f} ms (median of {SWEEPS})",
        "-", "-", "at most 5 ms",
    )  # fmt: skip


def _cold(version: str, pid: int) -> Row:
    took = [_time(_command(pid)) for _ in range(STARTS + 1)][1:]
    symbols = len(Process(pid).binary.symbols)
    return (
        f"{version}: qtrace inspect from start to end, {symbols} symbols",
        f"{statistics.median(took):.2f} s (median of {STARTS})",
        "-", "-", "at most 1.5 s",
    )  # fmt: skip


def _pauses(name: str, guest: Guest) -> list[Row]:
    gdb = [*GDB, "-p", str(guest.pid), *PRINT]
    ours, held, theirs, idle = (
        statistics.median(_longest_pause(guest, command) for _ in range(STOPS))
        for command in (
            _command(guest.pid), [*_command(guest.pid), "--gdb"], gdb, ["sleep", "0.5"],
        )
    )  # fmt: skip
    beside = f"gdb attach and print: {theirs:.0f} ms; nothing: {idle:.0f} ms"
    return [
        (
            f"{name}: longest pause of the guest during one look",
            f"{ours:.0f} ms (median of {STOPS})", "-", beside, "that of nothing",
        ),
        (
            f"{name}: the same with --gdb, which holds it",
            f"{held:.0f} ms (median of {STOPS})", "-", beside, "-",
        ),
    ]  # fmt: skip


def _longest_pause(guest: Guest, command: Sequence[str]) -> float:
    """The longest time without a device write of the guest while a command runs, in ms."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    longest, last, since = 0.0, guest.flash_writes(), time.monotonic()
    while process.poll() is None:
        now, written = time.monotonic(), guest.flash_writes()
        if written != last:
            longest, last, since = max(longest, now - since), written, now
        time.sleep(0.0005)
    return max(longest, time.monotonic() - since) * 1e3


def _command(pid: int) -> list[str]:
    return [sys.executable, "-m", "qtrace", "inspect", "--pid", str(pid)]


def _time(command: Sequence[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return time.monotonic() - began
