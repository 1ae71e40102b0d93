"""Rounds of snapshots under a recording: what most scenarios are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from qtrace.experiment.steer import RunOn, Steering
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.firmware import Firmware
from qtrace.lab.guest import Guest
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Setup, Stopwatch
from qtrace.lab.snapshot_jobs import save_round
from qtrace.process.process import Process
from qtrace.process.qmp_client import QmpClient
from qtrace.record.pump import Pump, pumped
from qtrace.record.recording_options import RecordingOptions
from qtrace.trace.schema import Event

# Enough for the race to show within seconds; see Guest.
IDLE_SOCKETS = 200


@contextmanager
def recorded(
    setup: Setup,
    firmware: Firmware,
    name: str = BOTTOM_HALF,
    stall_after_s: float = 2.0,
    **options: Any,
) -> Iterator[tuple[Guest, Pump]]:
    """A fresh guest (``options`` are Guest's) and a recording of one bottom half, which goes on
    by itself."""
    with Guest(setup.qemu, setup.accel, firmware, **options) as guest:
        recording = RecordingOptions(
            setup.trace,
            patterns=(name,),
            force=setup.force,
            qmp_socket=guest.second_qmp_socket,
            everything=setup.everything,
            stall_after_s=stall_after_s,
        )
        with pumped(guest.pid, recording, "scenario ended") as pump:
            yield guest, pump


def record_saves(
    setup: Setup, firmware: Firmware, enough: Callable[[Iterable[Event]], bool]
) -> Outcome:
    """Snapshot rounds, where chance or steering decides.

    Ends when ``enough`` holds for the rows that a round brought, or at the set-up's limits.
    """
    with recorded(setup, firmware, idle_sockets=IDLE_SOCKETS) as (guest, pump):
        steering = Steering(LiveQemu(Process(guest.pid)), BOTTOM_HALF, "vcpu", setup.rounds)
        with steering if setup.steer else nullcontext():
            watch = Stopwatch(setup)
            while watch.next_round():
                save_round(guest.qmp, f"qtrace{watch.rounds}")
                if enough(pump.take()):
                    break
            seconds = watch.seconds
        return Outcome(guest.qmp.version, watch.rounds, seconds)


def record_steered(
    setup: Setup, name: str, run_on: RunOn, one: Callable[[QmpClient, str], object]
) -> Outcome:
    """Rounds of any job whose bottom half is forced to run on one kind of thread."""
    with recorded(setup, "pflash", name) as (guest, _pump):
        experiment = Steering(LiveQemu(Process(guest.pid)), name, run_on, setup.rounds)
        watch = Stopwatch(setup)
        with experiment as steering:
            while watch.next_round():
                one(guest.qmp, f"qtrace{watch.rounds}")
            seconds = watch.seconds
        runs = steering.seen
        facts = {
            "steered": sum(run.as_wanted for run in runs),
            "held_ms": [run.held_ms for run in runs],
        }
        return Outcome(guest.qmp.version, watch.rounds, seconds, facts)
