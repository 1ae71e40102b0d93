"""``qtrace reroute``: schedule a bottom half into another AioContext, as if QEMU were patched."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import click

from qtrace.cli.options import DURATION, process_options
from qtrace.cli.output import format_option, print_json, stdout

EXAMPLES = """\b
Examples:
  qtrace reroute --pid 1234 --bh snapshot_save_job_bh --to iohandler
  qtrace reroute --pid 1234 --bh snapshot_save_job_bh --to iohandler --count 1"""


@click.command(epilog=EXAMPLES)
@process_options(required=True)
@click.option("-b", "--bh", "name", required=True, help="The bottom half (qtrace scan lists them).")
@click.option("--to", type=click.Choice(["iohandler", "main"]), required=True, help="The context.")
@click.option("--count", type=click.IntRange(min=0), default=0, help="End after so many.")
@click.option("--timeout", type=DURATION, help="End after this time: 30s, 10m.")
@format_option
def command(
    pid: int, name: str, to: Any, count: int, timeout: float | None, output_format: str
) -> int:
    """Schedule a bottom half into another AioContext, until Ctrl-C, --count or --timeout.

    Changes the target while it lasts: where the code has asked for the context, gdb hands it
    another one. For snapshot_save_job_bh into iohandler this is the one-line fix proposed for
    QEMU issue 2111. Put back at the end, however that comes; what is scheduled by then stays
    where it is. Works beside an eBPF recording.

    Exit status: 0, or 4 when --count was not reached.
    """
    from qtrace.cli.experiment_run import ENDED, exit_status, left, run, warn
    from qtrace.experiment.reroute import Rerouting
    from qtrace.inspection.qemu import LiveQemu
    from qtrace.process.process import Process, unless_it_ends

    with unless_it_ends(pid):
        qemu = LiveQemu(Process(pid))
        rerouting = Rerouting(qemu, name, to, count)
    name = rerouting.half.name
    warn(f"this changes process {pid}: {name} goes into '{to}', as if QEMU were patched")
    hint = f"{count} times" if count else "until Ctrl-C" if timeout is None else f"{timeout:g} s"
    armed = f"rerouting {name} into {to}, {hint}"
    ended_by = run(rerouting, armed, timeout, lambda _: None)
    if output_format == "json":
        reroutes = [dataclasses.asdict(one) for one in rerouting.seen]
        print_json(
            {
                "target": qemu.describe(),
                "bottom_half": name,
                "to": to,
                "count": count,
                "reroutes": reroutes,
                **left(rerouting, ended_by),
            }
        )
    else:
        came_from = Counter(one.came_from or "?" for one in rerouting.seen)
        for context, times in came_from.items():
            stdout().print(f"{name} was rerouted {times} times from {context} into {to}")
        if not came_from:
            stdout().print(f"{name} was not scheduled: nothing was rerouted")
    complete = rerouting.done or (not count and ended_by != ENDED)
    return exit_status(ended_by, complete)
