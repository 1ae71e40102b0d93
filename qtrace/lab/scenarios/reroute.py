"""The fix of the mail thread, live: the bottom half goes into the iohandler context."""

from __future__ import annotations

from qtrace.experiment.reroute import Rerouting
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.saves import IDLE_SOCKETS, recorded
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup, Stopwatch
from qtrace.lab.snapshot_jobs import save, save_round
from qtrace.process.process import Process

MEMORY_MIB = 256


def run(setup: Setup) -> Outcome:
    """As many rounds as vcpu-poll needs many times over, each rerouted, and a real save."""
    with recorded(setup, "pflash", idle_sockets=IDLE_SOCKETS, memory_mib=MEMORY_MIB, disk=True) as (
        guest,
        _pump,
    ):
        watch = Stopwatch(setup)
        with Rerouting(LiveQemu(Process(guest.pid)), BOTTOM_HALF, "iohandler") as rerouting:
            while watch.next_round():
                save_round(guest.qmp, f"qtrace{watch.rounds}")
            times = save(guest.qmp, "real")
            seconds = watch.seconds
        rerouted = len(rerouting.seen)
        return Outcome(
            guest.qmp.version,
            watch.rounds,
            seconds,
            facts={"rerouted": rerouted, "reply_ms": times.reply, "job_ms": times.done},
            lines=(
                f"all {rerouted} were rerouted from main into iohandler",
                f"a real save was answered after {times.reply:.1f} of {times.done:.1f} ms",
            ),
            # Stock it is answered when the guest runs again, and late-reply measures how late.
            proven=rerouted == watch.rounds + 1 and times.reply < (times.resume or 0),
        )


SCENARIO = Scenario(
    name="reroute",
    explanation="vcpu-poll with the proposed fix, live: none of its saves runs on a vCPU",
    expected="main-loop",
    rounds=1000,
    timeout_s=60.0,
    run=run,
)
