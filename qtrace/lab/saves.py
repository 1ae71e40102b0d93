"""Rounds of snapshots under a recording: what most scenarios are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from qtrace.experiment.steer import RunOn, Steering
from qtrace.experiment.subject import Subject
from qtrace.lab.firmware import Firmware
from qtrace.lab.guest import Guest
from qtrace.lab.jobs import save_round
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Setup, Stopwatch
from qtrace.recorder.all_program import ring_pages
from qtrace.recorder.program import load_ahead
from qtrace.recorder.rings import possible_cpus
from qtrace.recorder.session import Recording
from qtrace.recorder.start import start_recording
from qtrace.target.qmp import QmpClient
from qtrace.trace.schema import Event

# Enough for the race to show within seconds; see Guest.
IDLE_SOCKETS = 200

# With --all: nobody comes for the rows while a guest's job is waited for.
ALL_RING_BYTES = 128 << 20


@contextmanager
def recorded(
    setup: Setup,
    firmware: Firmware,
    name: str = BOTTOM_HALF,
    stall_after_s: float = 2.0,
    **options: Any,
) -> Iterator[tuple[Guest, Recording]]:
    """A fresh guest (``options`` are Guest's) and a recording of one bottom half."""
    with (
        Guest(setup.qemu, setup.accel, firmware, **options) as guest,
        start_recording(
            guest.pid,
            output=setup.trace,
            patterns=(name,),
            force=setup.force,
            qmp_socket=guest.second_qmp_socket,
            # With --all, too, as much room as without: see ALL_RING_BYTES.
            program=load_ahead(),
            everything=setup.everything,
            ring_pages=ring_pages(possible_cpus(), ALL_RING_BYTES),
            stall_after_s=stall_after_s,
        ) as recording,
    ):
        yield guest, recording
        recording.stop("scenario ended")


def record_saves(
    setup: Setup, firmware: Firmware, enough: Callable[[Iterable[Event]], bool]
) -> Outcome:
    """Snapshot rounds, where chance or steering decides.

    Ends when ``enough`` holds for the rows that a round brought, or at the set-up's limits.
    """
    with recorded(setup, firmware, idle_sockets=IDLE_SOCKETS) as (guest, recording):
        steering = Steering(Subject(guest.pid, BOTTOM_HALF), "vcpu", setup.rounds)
        with steering if setup.steer else nullcontext():
            watch = Stopwatch(setup)
            while watch.next_round():
                save_round(guest.qmp, f"qtrace{watch.rounds}")
                if enough(recording.poll(0)):
                    break
            seconds = watch.seconds
        return Outcome(guest.qmp.version, watch.rounds, seconds)


def record_steered(
    setup: Setup, name: str, run_on: RunOn, one: Callable[[QmpClient, str], object]
) -> Outcome:
    """Rounds of any job whose bottom half is forced to run on one kind of thread."""
    with recorded(setup, "pflash", name) as (guest, recording):
        # Whatever takes a while is followed by a poll: --all brings 200,000 events a second.
        recording.poll(0)
        experiment = Steering(Subject(guest.pid, name), run_on, setup.rounds)
        recording.poll(0)
        watch = Stopwatch(setup)
        with experiment as steering:
            recording.poll(0)
            while watch.next_round():
                one(guest.qmp, f"qtrace{watch.rounds}")
                recording.poll(0)
            seconds = watch.seconds
        recording.poll(0)
        runs = steering.seen
        facts = {
            "steered": sum(run.as_wanted for run in runs),
            "held_ms": [run.held_ms for run in runs],
        }
        return Outcome(guest.qmp.version, watch.rounds, seconds, facts)
