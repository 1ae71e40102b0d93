"""The assertion of QEMU issue 2111, until 8.1: a vCPU thread saves, drops the BQL, and aborts."""

from __future__ import annotations

from qtrace.errors import LabFailed, QmpFailed
from qtrace.experiment.steer import Steering
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.saves import recorded
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup, Stopwatch
from qtrace.lab.snapshot_jobs import save
from qtrace.process.process import Process
from qtrace.sites.experiment_places import drops_bql


def run(setup: Setup) -> Outcome:
    """A real save, forced onto a vCPU thread. The recording outlives the QEMU."""
    with recorded(setup, "pflash", disk=True) as (guest, pump):
        version = guest.qmp.version
        qemu = LiveQemu(Process(guest.pid))
        if not drops_bql(qemu.binary):
            raise LabFailed(
                "this QEMU keeps the BQL while it saves (930e239d11, 8.2): it does not crash",
                "use a QEMU before 8.2, as Debian 12's, with --qemu",
            )
        watch = Stopwatch(setup)
        with Steering(qemu, BOTTOM_HALF, "vcpu", setup.rounds):
            try:
                while watch.next_round():
                    save(guest.qmp, f"qtrace{watch.rounds}")
            except QmpFailed:
                pass
            seconds = watch.seconds
        pump.wait_for_end(setup.timeout_s - watch.seconds)
        words = guest.last_words() or "still runs"
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
