"""The large counts of all that uses gdb: steered runs, verdicts in the blind, kills."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.errors import QmpFailed
from qtrace.experiment.steer import RunOn, Steering
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.snapshot_jobs import save_round
from qtrace.process.process import Process
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.reader import read_trace
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attach_command
from tests.live.support.experimenting import WATCHED, Experimenting, started_command
from tests.live.support.ptraced import assert_runs_on, tracer_of, until

pytestmark = [pytest.mark.bpf, pytest.mark.gdb, pytest.mark.qemu, pytest.mark.soak]

STEERED, BLIND, KILLS = 20, 100, 20
HOLD_LIMIT_MS = 20.0
# From the moment that gdb traces the guest: while it attaches, and well into the work.
LATEST_KILL_S = 0.6
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "recording": ("attach", "--backend", "gdb"),
    "steer vcpu": ("steer", "--bh", WATCHED, "--run-on", "vcpu", "--count", "100000"),
    "steer main": ("steer", "--bh", WATCHED, "--run-on", "main", "--count", "100000"),
    "reroute": ("reroute", "--bh", WATCHED, "--to", "iohandler"),
}


@pytest.mark.parametrize("run_on", ["vcpu", "main"])
def test_20_of_20_are_steered(
    qemu_binary: Path, accel: Accelerator, run_on: RunOn, soak_row: Callable[..., None]
) -> None:
    with Guest(qemu_binary, accel) as guest:
        with Steering(LiveQemu(Process(guest.pid)), WATCHED, run_on, STEERED) as steering:
            for number in range(STEERED):
                save_round(guest.qmp, f"save{number}")
        assert_runs_on(guest)
    held = [run.held_ms for run in steering.seen]
    good = sum(run.as_wanted for run in steering.seen)
    soak_row(
        "runs steered",
        f"{good} of {STEERED}",
        f"held {statistics.median(held):.2f} ms (median), {max(held):.2f} ms (most)",
    )
    assert good == len(steering.seen) == STEERED
    assert max(held) <= HOLD_LIMIT_MS


def test_the_verdicts_of_100_saves_in_the_blind_are_what_was_forced(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    generator = random.Random(2111)
    forced: list[RunOn] = [generator.choice(("vcpu", "main")) for _ in range(BLIND)]
    trace = tmp_path / "trace.csv"
    with (
        Guest(qemu_binary, accel) as guest,
        start_recording(guest.pid, RecordingOptions(trace)) as recording,
    ):
        qemu = LiveQemu(Process(guest.pid))
        for number, run_on in enumerate(forced):
            with Steering(qemu, WATCHED, run_on) as steering:
                save_round(guest.qmp, f"save{number}")
            assert [run.as_wanted for run in steering.seen] == [True]
            recording.poll(0)
    judged = _verdicts(trace)
    wanted = ["vcpu-poll" if run_on == "vcpu" else "main-loop" for run_on in forced]
    right = sum(one == other for one, other in zip(judged, wanted, strict=True))
    soak_row("verdicts in the blind", f"{right} of {BLIND} as forced")
    assert right == BLIND


def _verdicts(trace: Path) -> list[str]:
    """One for each save, in their order."""
    from qtrace.analysis import classify, pair_instances

    read = read_trace(trace)
    instances = classify(pair_instances(read.frame), read)
    return [str(v) for v in instances.sort_values("scheduled_ns")["verdict"]]


@pytest.mark.parametrize("whom", ["qtrace", "gdb", "both"])
@pytest.mark.parametrize("what", EXPERIMENTS)
def test_the_guest_outlives_20_kills_at_random_moments(
    qemu_binary: Path, accel: Accelerator, what: str, whom: str, soak_row: Callable[..., None]
) -> None:
    generator = random.Random(f"{what} {whom}")
    survived, guest_deaths = 0, []
    while survived + len(guest_deaths) < KILLS:
        with Guest(qemu_binary, accel) as guest:
            while guest.alive and survived + len(guest_deaths) < KILLS:
                after_s = generator.uniform(0, LATEST_KILL_S)
                try:
                    _kill(guest, what, whom, after_s)
                    survived += 1
                except (AssertionError, QmpFailed) as error:
                    guest_deaths.append((round(after_s, 3), guest.last_words(), str(error)[:100]))
                    break
    soak_row("kills survived", f"{survived} of {KILLS}")
    assert guest_deaths == []


def _kill(guest: Guest, what: str, whom: str, after_s: float) -> None:
    command, *options = EXPERIMENTS[what]
    with _saves(guest), started_command(_command(command, guest.pid, options)) as running:
        gdb = _tracer(guest.pid, running)
        time.sleep(after_s)
        if whom != "gdb":
            running.process.kill()
        if whom != "qtrace":
            os.kill(gdb, signal.SIGKILL)
        running.process.wait(TIMEOUT_S)
        until(lambda: not Path(f"/proc/{gdb}").exists(), "the end of gdb")
        until(lambda: not guest.alive or not _is_held(guest.pid), "being let go")
    assert_runs_on(guest)
    save_round(guest.qmp, "after")


def _command(command: str, pid: int, options: list[str]) -> list[str]:
    words = attach_command(pid, *options)
    words[words.index("attach")] = command
    return words


def _tracer(pid: int, running: Experimenting) -> int:
    assert running.process.poll() is None
    return tracer_of(pid)


def _is_held(pid: int) -> bool:
    from qtrace.gdb.target_state import is_traced_or_stopped

    return is_traced_or_stopped(pid)


@contextmanager
def _saves(guest: Guest) -> Iterator[None]:
    """One save after the other, all the time."""
    ending = threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        number = 0
        try:
            while not ending.is_set():
                save_round(guest.qmp, f"busy{number}")
                number += 1
        except QmpFailed as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    if failures:
        raise failures[0]
