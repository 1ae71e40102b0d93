"""``qtrace run``: start a QEMU program with every probe armed before its first instruction."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from qtrace.cli.options import DURATION, watch_options
from qtrace.cli.output import format_option
from qtrace.cli.record import (
    Files,
    Limits,
    all_options,
    announce,
    check_options,
    ending,
    prepare,
    record,
    verdict,
)  # fmt: skip

EXAMPLES = """\b
Examples:
  qtrace run --all -- qemu-img bench -f raw -c 10007 disk.raw
  qtrace run -o trace.csv -- qemu-system-x86_64 -nodefaults -display none"""


@click.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": False})
@watch_options
@all_options
@click.option("--duration", type=DURATION, help="End the recording (not the program) then.")
@format_option
@click.argument("program_and_arguments", metavar="-- COMMAND...", nargs=-1, required=True)
def command(
    program_and_arguments: tuple[str, ...],
    patterns: tuple[str, ...],
    output: Path | None,
    force: bool,
    qmp: Path | None,
    everything: bool,
    stacks_every: int | None,
    max_size: int | None,
    until_finding: bool,
    max_overhead: float | None,
    live: bool,
    duration: float | None,
    output_format: str,
) -> int:
    """Run COMMAND and record it from its very start; judge and exit as attach does.

    For bugs at start-up, for short-lived tools (qemu-img) and for benchmarks. Its output
    passes through: to stdout, with --format json to stderr. A signal is passed on; what it
    exits with is reported.
    """
    check_options(
        everything,
        {"--stacks-every": stacks_every, "--live": live, "--max-overhead": max_overhead},
    )
    if qmp is not None:
        raise click.UsageError("--qmp: the program has no socket yet when its recording begins")
    from qtrace.recorder.program import load_ahead

    program = load_ahead(everything=everything)
    from qtrace.recorder.launch import launch

    limits = Limits(duration, max_size, until_finding, max_overhead, live)
    prepare(limits, everything)
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder, ending() as reasons:
        files = Files(output, force, everything, Path(folder))
        recording, child = launch(
            program_and_arguments, output=files.growing, patterns=patterns, force=force,
            program=program, everything=everything,
            stacks_every=stacks_every or 0,
            output_fd=2 if output_format == "json" else None,
        )  # fmt: skip
        try:
            with recording:
                announce(recording, f"{child.path}, process {child.pid}", duration)
                reason = record(recording, limits, reasons)
                if reason.startswith("SIG"):
                    # The program ends as it would have without us; what it does then counts.
                    child.pass_on(reason)
                    reason = record(recording, Limits(), reasons[len(reasons) :])
                recording.stop(reason)
            status = child.wait()
        except BaseException:
            child.kill()
            raise
        click.echo(f"{Path(child.path).name} {describe(status)}", err=True)
        return verdict(files.settle(), recording, output is not None, output_format)


def describe(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"was ended by signal {os.WTERMSIG(status)}"
    return f"exited with status {os.WEXITSTATUS(status)}"
