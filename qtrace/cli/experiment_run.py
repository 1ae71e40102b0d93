"""What `qtrace steer` and `qtrace reroute` share: ending in good order, and saying how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from qtrace.cli.signals import Signals
from qtrace.errors import ExitStatus
from qtrace.experiment.experiment import Experiment, T

ENDED = "the target has ended"


def warn(text: str) -> None:
    """An experiment changes the target: nobody shall overlook that."""
    click.echo(click.style(f"WARNING: {text}", fg="red", bold=True), err=True)


def run(
    experiment: Experiment[T],
    armed: str,
    timeout_s: float | None,
    tell: Callable[[T], None],
) -> str:
    """Let an experiment go on until it is done or something ends it.

    Args:
        armed: the line for stderr once it is in force.
        tell: called with each event.

    Returns:
        What ended it: ``done``, ``hopeless``, ``time-out``, ``ENDED``, or a signal's name.
    """
    with Signals() as signals, signals.held_off(), experiment:
        pause = experiment.ending.paused_ms["attach"]
        click.echo(f"{armed} (the guest was paused for {pause:.1f} ms)", err=True)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        ended_by = ""
        while not ended_by:
            for event in experiment.poll(0.1):
                tell(event)
            if experiment.done:
                ended_by = "done"
            elif experiment.target_gone:
                ended_by = ENDED
            elif experiment.hopeless:
                ended_by = "hopeless"
            elif signals.reason:
                ended_by = signals.reason
            elif deadline is not None and time.monotonic() >= deadline:
                ended_by = "time-out"
    for problem in experiment.ending.problems:
        click.echo(f"warning: {problem}", err=True)
    if not experiment.target_gone and not experiment.ending.problems:
        click.echo("undone: the guest runs on, its code is the file's", err=True)
    return ended_by


def left(experiment: Experiment[T], ended_by: str) -> dict[str, Any]:
    """How it ended, for JSON."""
    ending = experiment.ending
    return {
        "ended_by": ended_by,
        "paused_ms": {phase: round(ms, 3) for phase, ms in ending.paused_ms.items()},
        "problems": ending.problems,
    }


def exit_status(ended_by: str, complete: bool) -> ExitStatus:
    """0 when all that was asked for has happened, 3 when the target is gone, else 4."""
    if complete:
        return ExitStatus.OK
    return ExitStatus.ENVIRONMENT if ended_by == ENDED else ExitStatus.INCONCLUSIVE
