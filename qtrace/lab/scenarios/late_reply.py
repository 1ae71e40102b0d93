"""The late reply: snapshot-save is answered when the whole save is over, but not with the fix."""

from __future__ import annotations

from contextlib import nullcontext

from qtrace.experiment.reroute import Rerouting
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.saves import recorded
from qtrace.lab.scenario import BOTTOM_HALF, Outcome, Scenario, Setup, Stopwatch
from qtrace.lab.snapshot_jobs import JobTimes, save
from qtrace.process.process import Process

MEMORY_MIB = 1024
# Stock the reply came after 0.97 and more of the save, rerouted after 0.04 of it.
LATE, PROMPT = 0.8, 0.5


def run(setup: Setup) -> Outcome:
    """Real saves of a guest with some memory, half of them rerouted."""
    with recorded(setup, "idle", memory_mib=MEMORY_MIB, disk=True) as (guest, _pump):
        watch = Stopwatch(setup)
        times: dict[str, list[JobTimes]] = {"stock": [], "rerouted": []}
        qemu = LiveQemu(Process(guest.pid))
        for kind, found in times.items():
            experiment = (
                Rerouting(qemu, BOTTOM_HALF, "iohandler") if kind == "rerouted" else nullcontext()
            )
            with experiment:
                while len(found) < max(setup.rounds // 2, 1) and watch.next_round():
                    found.append(save(guest.qmp, f"qtrace{watch.rounds}"))
        rows = [
            {"kind": kind, "reply_ms": round(one.reply, 1), "job_ms": round(one.done, 1),
             "error": one.error}
            for kind, found in times.items()
            for one in found
        ]  # fmt: skip
        lines = [f"{'':<10}{'reply after':>14}{'job done after':>18}"]
        lines += [f"{r['kind']:<10}{r['reply_ms']:>11} ms{r['job_ms']:>15} ms" for r in rows]
        return Outcome(
            guest.qmp.version,
            watch.rounds,
            watch.seconds,
            facts={"replies": rows},
            lines=tuple(lines),
            proven=all(one.reply >= LATE * _save(one) for one in times["stock"])
            and all(one.reply <= PROMPT * _save(one) for one in times["rerouted"])
            and all(times.values())
            and not any(row["error"] for row in rows),
        )


def _save(times: JobTimes) -> float:
    """When the guest ran again: the save itself was over."""
    return times.resume if times.resume is not None else times.done


SCENARIO = Scenario(
    name="late-reply",
    explanation="snapshot-save is answered after the whole save; rerouted, at once",
    expected="main-loop",
    rounds=6,
    timeout_s=60.0,
    run=run,
)
