"""The assertion of QEMU issue 2111, until 8.1: a vCPU thread saves, drops the BQL, and aborts."""

from __future__ import annotations

from qtrace.errors import LabFailed, QmpFailed
from qtrace.experiment.places import drops_bql
from qtrace.experiment.steer import Steering
from qtrace.experiment.subject import Subject
from qtrace.lab.jobs import save
from qtrace.lab.saves import recorded
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup, Stopwatch


def run(setup: Setup) -> Outcome:
    """A real save, forced onto a vCPU thread. The recording outlives the QEMU."""
    with recorded(setup, "pflash", disk=True) as (guest, recording):
        version = guest.qmp.version
        subject = Subject(guest.pid, BOTTOM_HALF)
        if not drops_bql(subject.module):
            raise LabFailed(
                "this QEMU keeps the BQL while it saves (930e239d11, 8.2): it does not crash",
                "use a QEMU before 8.2, as Debian 12's, with --qemu",
            )
        recording.poll(0)  # what stacks need is read while there is a process to read it from
        watch = Stopwatch(setup)
        with Steering(subject, "vcpu", setup.rounds):
            try:
                while watch.next_round():
                    save(guest.qmp, f"qtrace{watch.rounds}")
            except QmpFailed:
                pass
            seconds = watch.seconds
        while not recording.ended and watch.seconds < setup.timeout_s:
            recording.poll(0.1)
        words = guest.last_words() or "still runs"
        recording.stop("target exited" if recording.ended else "scenario ended")
        return Outcome(
            version,
            watch.rounds,
            seconds,
            facts={"ended": words},
            lines=(f"QEMU {words}",),
            proven="signal 6" in words,
        )


SCENARIO = Scenario(
    name="crash",
    explanation="before 8.2 a real save on a vCPU thread aborts QEMU; the verdict survives it",
    expected="vcpu-poll",
    rounds=20,
    timeout_s=60.0,
    run=run,
)
