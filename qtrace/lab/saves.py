"""The rounds that both snapshot scenarios are made of: save, look at the new rows, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qtrace.lab.firmware import Firmware
from qtrace.lab.guest import Guest, save_round
from qtrace.lab.scenario import Outcome, Setup, Stopwatch
from qtrace.recorder.session import Recording
from qtrace.trace.schema import Event

BOTTOM_HALF = "snapshot_save_job_bh"
# Enough for the race to show within seconds; see Guest.
IDLE_SOCKETS = 200


def record_saves(
    setup: Setup, firmware: Firmware, enough: Callable[[Iterable[Event]], bool]
) -> Outcome:
    """Snapshot rounds of a fresh guest under a recording.

    Ends when ``enough`` holds for the rows that a round brought, or at the set-up's limits.
    """
    with (
        Guest(setup.qemu, setup.accel, firmware, idle_sockets=IDLE_SOCKETS) as guest,
        Recording.start(
            guest.pid,
            output=setup.trace,
            patterns=(BOTTOM_HALF,),
            force=setup.force,
            qmp_socket=guest.second_qmp_socket,
        ) as recording,
    ):
        watch = Stopwatch(setup)
        while watch.next_round():
            save_round(guest.qmp, f"qtrace{watch.rounds}")
            if enough(recording.poll(0)):
                break
        seconds = watch.seconds
        recording.stop("scenario ended")
        return Outcome(guest.qmp.version, watch.rounds, seconds)
