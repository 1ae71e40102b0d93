"""``qtrace run``: start a QEMU program with every probe armed before its first instruction."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrace.cli.attach_and_run import (
    Wanted,
    announce,
    record_until,
    recording_options,
    stall_option,
    stop,
    tell_price,
    verdict,
)
from qtrace.cli.signals import Signals
from qtrace.record.recording_options import Limits

if TYPE_CHECKING:
    from qtrace.record.child import Child
    from qtrace.record.recording import Recording

# A signal is passed on after as long.
WAIT_S = 0.1

EXAMPLES = """\b
Examples:
  qtrace run --all -- qemu-img bench -f raw -c 10007 disk.raw
  qtrace run -o trace.csv -- qemu-system-x86_64 -nodefaults -display none"""


@click.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": False})
@stall_option
@recording_options
@click.argument("program_and_arguments", metavar="-- COMMAND...", nargs=-1, required=True)
def command(wanted: Wanted, program_and_arguments: tuple[str, ...], stall_after: float) -> int:
    """Run COMMAND and record it from its very start; judge and exit as attach does.

    COMMAND is a QEMU program, or executes one: env, chroot, timeout, a script; its first is
    recorded.
    For bugs at start-up, for short-lived tools (qemu-img) and for benchmarks. Its output
    passes through: to stdout, with --format json to stderr. A signal is passed on; what it
    exits with is reported.
    """
    tell_price()
    from qtrace.record.launch import launch

    wanted.prepare()
    with (
        tempfile.TemporaryDirectory(prefix="qtrace-") as folder,
        Signals() as signals,
        wanted.files(folder) as files,
    ):
        recording, child = launch(
            program_and_arguments,
            wanted.recording(files, stall_after_s=stall_after),
            output_fd=2 if wanted.output_format == "json" else None,
            given_up=lambda: bool(signals.reason),
        )
        try:
            with recording:
                announce(recording, f"{child.path}, process {child.pid}", wanted, files)
                reason = record_until(recording, wanted.limits(recording), signals, wanted.live)
                if signals.reason:
                    reason = _end(child, recording, signals)
                stop(recording, reason, signals)
            status = _wait(child, signals)
        except BaseException:
            child.kill()
            raise
        click.echo(f"{Path(child.path).name} {describe(status)}", err=True)
        return verdict(files, recording, wanted.output_format)


def _end(child: Child, recording: Recording, signals: Signals) -> str:
    """Pass a signal on, and record how the program ends by it; what ended the recording.

    It ends as it would have without us, and what it does then counts; one that does not is
    killed at the next signal.
    """
    child.pass_on(signals.reason)
    signals.forget()
    reason = record_until(recording, Limits(), signals)
    if signals.reason:
        child.kill()
        signals.forget()
        reason = record_until(recording, Limits(), signals)
    return reason


def _wait(child: Child, signals: Signals) -> int:
    """The program's wait status. One that goes on gets a signal, and is killed at the next."""
    signals.forget()
    while not child.wait_for_end(WAIT_S):
        if signals.reason:
            child.pass_on(signals.reason)
            signals.forget()
            signals.no_loop()
    signals.no_loop()
    return child.wait()


def describe(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"was ended by signal {os.WTERMSIG(status)}"
    return f"exited with status {os.WEXITSTATUS(status)}"
