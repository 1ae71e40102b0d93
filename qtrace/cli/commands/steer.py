"""``qtrace steer``: force the next runs of a bottom half onto a vCPU thread, or the main one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.options import DURATION, process_options
from qtrace.cli.output import format_option, print_json, stdout

if TYPE_CHECKING:
    from qtrace.experiment.steer import Run, Steering

EXAMPLES = """\b
Examples:
  qtrace steer --pid 1234 --bh snapshot_save_job_bh --run-on vcpu
  qtrace steer --pid 1234 --bh snapshot_save_job_bh --run-on main --count 100"""
# JSON has them all.
SHOWN = 10
# The guest stands still for as long, and no signal ends it sooner.
LONGEST_HOLD_S = 1.0
ROLES = {"vcpu": "a vCPU thread", "main": "the main thread"}


@click.command(epilog=EXAMPLES)
@process_options(required=True)
@click.option("-b", "--bh", "name", required=True, help="The bottom half (qtrace scan lists them).")
@click.option("--run-on", type=click.Choice(["vcpu", "main"]), required=True, help="Where.")
@click.option(
    "--count", type=click.IntRange(min=1), default=1, show_default=True, help="How often."
)
@click.option(
    "--timeout", type=DURATION, default="60s", show_default=True, help="Give up after this time."
)
@click.option(
    "--hold", type=DURATION, default="15ms", show_default=True, help="The longest hold for a run."
)
@format_option
def command(
    pid: int,
    name: str,
    run_on: Any,
    count: int,
    timeout: float,
    hold: float,
    output_format: str,
) -> int:
    """Force the next runs of a bottom half onto a vCPU thread, or onto the main thread.

    Changes the target while it lasts: by gdb, the main loop is held where it has dropped the
    BQL until a vCPU thread has taken the bottom half; or all other threads are held until the
    main thread runs it. Put back at the end, however that comes. Works beside an eBPF recording.

    Exit status: 0 when all runs were as wanted, 4 when it gave up.
    """
    from qtrace.cli.experiment_run import exit_status, left, run, warn
    from qtrace.experiment.steer import Steering
    from qtrace.inspection.qemu import LiveQemu
    from qtrace.process.process import Process, unless_it_ends

    if hold > LONGEST_HOLD_S:
        raise click.UsageError("--hold is at most 1s: the guest stands still meanwhile")
    with unless_it_ends(pid):
        qemu = LiveQemu(Process(pid))
        steering = Steering(qemu, name, run_on, count, hold)
    name = steering.half.name
    warn(f"this holds threads of process {pid} to decide where {name} runs")
    times = "run" if count == 1 else f"{count} runs"
    armed = f"steering the next {times} of {name} onto {ROLES[run_on]}"
    ended_by = run(steering, armed, timeout, lambda _: None)
    why = "" if steering.done else _why(steering, run_on, ended_by)
    if output_format == "json":
        runs = [dataclasses.asdict(one) for one in steering.seen]
        print_json(
            {
                "target": qemu.describe(),
                "bottom_half": name,
                "run_on": run_on,
                "count": count,
                "as_wanted": sum(one.as_wanted for one in steering.seen),
                "gave_up": why or None,
                "runs": runs,
                **left(steering, ended_by),
            }
        )
    else:
        _print(steering.seen, run_on)
        if why:
            stdout().print(f"gave up: {why}")
    return exit_status(ended_by, steering.done)


def _print(runs: list[Run], run_on: str) -> None:
    from qtrace.cli.views.verdict_view import inert

    for run in runs[:SHOWN]:
        mark = "as wanted" if run.as_wanted else f"not on {ROLES[run_on]}"
        thread = f"{run.thread.role} {inert(run.thread.name)} (tid {run.thread.tid})"
        chain = " <- ".join(inert(frame) for frame in run.stack[:4])
        stdout().print(f"{mark}: ran on {thread}, held {run.held_ms:.2f} ms: {chain} <- ...")
    if len(runs) > SHOWN:
        stdout().print(f"... and {len(runs) - SHOWN} more")
    if runs:
        held = sorted(run.held_ms for run in runs)
        good = sum(run.as_wanted for run in runs)
        stdout().print(
            f"{good} of {len(runs)} on {ROLES[run_on]}; "
            f"held {held[len(held) // 2]:.2f} ms (median), {held[-1]:.2f} ms at most"
        )


def _why(steering: Steering, run_on: str, ended_by: str) -> str:
    name = steering.half.name
    if ended_by not in ("time-out", "hopeless"):
        return f"ended by {ended_by}"
    if not steering.seen:
        return f"{name} was not scheduled in this time"
    waited = sum(run.limit for run in steering.seen)
    if run_on == "vcpu" and waited:
        where = {run.context or "?" for run in steering.seen}
        return (
            f"the main loop was held {waited} times to the end, and no vCPU thread polled "
            f"{' or '.join(sorted(where))}: the guest accesses no device that polls"
        )
    return f"{len(steering.seen)} runs, but not enough of them as wanted, in this time"
