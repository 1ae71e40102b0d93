"""A vCPU thread gives itself away without a tracer: STOP and RESUME come back to back.

vm_stop() on a vCPU thread only posts a request; vm_start() at the end of the save then finds it
pending, sends both events at once and resumes nothing. So the save has worked on a running guest,
and that vCPU, which vm_stop() has told to stop, stands still from then on, although QEMU calls
the guest running. On some runs the main loop takes the request meanwhile: then neither event
comes before the job's end, and the main loop waits for ever in pause_all_vcpus(). So this save is
the last thing that is asked of QEMU.
"""

from __future__ import annotations

import time

from qtrace.errors import LabFailed
from qtrace.experiment.steer import Steering
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Guest
from qtrace.lab.saves import recorded
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup, Stopwatch
from qtrace.lab.snapshot_jobs import REAL, JobTimes, run_job, save
from qtrace.process.process import Process
from qtrace.sites.experiment_places import drops_bql

MEMORY_MIB = 256
# Measured: 12 ms and more against 0.03 to 0.3 ms.
TIMES = 5
LOOK_S = 0.3


def run(setup: Setup) -> Outcome:
    """Real saves forced onto the main thread, and a last one onto a vCPU thread."""
    with recorded(setup, "pflash", memory_mib=MEMORY_MIB, disk=True) as (guest, _pump):
        version, qemu = guest.qmp.version, LiveQemu(Process(guest.pid))
        if drops_bql(qemu.binary):
            raise LabFailed(
                "this QEMU crashes when a vCPU thread saves (fixed by 930e239d11, 8.2)",
                "use a newer QEMU with --qemu; `qtrace lab crash` shows the crash of this one",
            )
        watch = Stopwatch(setup)
        saves: list[tuple[str, JobTimes]] = []
        with Steering(qemu, BOTTOM_HALF, "main", setup.rounds) as steering:
            while len(saves) < setup.rounds - 1 and watch.next_round():
                saves.append(("main", save(guest.qmp, f"qtrace{watch.rounds}")))
        with Steering(qemu, BOTTOM_HALF, "vcpu") as last:
            watch.next_round()
            times = run_job(guest.qmp, "snapshot-save", f"qtrace{watch.rounds}", last=True, **REAL)
            saves.append(("vcpu", times))
        steered = all(one.as_wanted for one in [*steering.seen, *last.seen])
        rows = [
            {"run_on": run_on, "gap_ms": _gap(one), "save_ms": round(one.done, 2)}
            for run_on, one in saves
        ]
        lines = [f"{'run by':<8}{'STOP to RESUME':>16}{'the whole save':>18}"]
        for run_on, one in saves:
            lines.append(f"{run_on:<8}{_shown(_gap(one)):>16}{one.done:>15.2f} ms")
        still = _stands_still(guest)
        if still:
            lines.append("and since then the guest's vCPU stands still")
        *by_main, by_vcpu = [_gap(one) for _run_on, one in saves]
        return Outcome(
            version,
            watch.rounds,
            watch.seconds,
            facts={"saves": rows, "vcpu_stands_still": still},
            lines=tuple(lines),
            proven=steered
            and len(by_main) > 0
            and all(gap is not None and gap >= TIMES * (by_vcpu or 0) for gap in by_main),
        )


def _gap(times: JobTimes) -> float | None:
    """From STOP to RESUME in ms; None when they did not both come before the job's end."""
    if times.stop is None or times.resume is None:
        return None
    return round(times.resume - times.stop, 2)


def _shown(gap: float | None) -> str:
    return "none" if gap is None else f"{gap} ms"


def _stands_still(guest: Guest) -> bool:
    before = guest.flash_writes()
    time.sleep(LOOK_S)
    return guest.flash_writes() == before


SCENARIO = Scenario(
    name="stop-resume",
    explanation="the time from STOP to RESUME tells a save on a vCPU, without any tracer",
    expected="vcpu-poll",
    rounds=4,
    timeout_s=60.0,
    run=run,
)
