"""``qtrace attach``: record a live QEMU until something ends it, then the verdict."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from qtrace.cli.options import DURATION, watch_options
from qtrace.cli.output import format_option
from qtrace.trace.schema import escape

if TYPE_CHECKING:
    from qtrace.recorder.probes import Backend
    from qtrace.recorder.session import Recording

RECORDERS = {"ebpf": "eBPF", "gdb": "gdb"}

EXAMPLES = """\b
Examples:
  qtrace attach --pid 1234                   Ctrl-C ends it
  qtrace attach --pid 1234 --duration 10m -o trace.csv
  qtrace attach --pid 1234 -b 'job_*' --format json
  qtrace attach --pid $(pidof qemu-system-x86_64) --qmp /run/qmp2.sock"""


@click.command(epilog=EXAMPLES)
@click.option("--pid", type=int, required=True, help="The QEMU process (qtrace ps lists them).")
@watch_options
@click.option(
    "--backend",
    type=click.Choice(["auto", "ebpf", "gdb"]),
    default="auto",
    show_default=True,
    help="gdb stops the guest for some milliseconds, eBPF never; auto is eBPF where it works.",
)
@click.option(
    "--stall-after", type=DURATION, default="2s", show_default=True, metavar="TIME",
    help="Look who is in the way of a bottom half that is pending for longer.",
)  # fmt: skip
@click.option("--duration", type=DURATION, help="End after this time: 30s, 10m, 2h.")
@format_option
def command(
    pid: int,
    patterns: tuple[str, ...],
    output: Path | None,
    force: bool,
    qmp: Path | None,
    backend: Backend,
    stall_after: float,
    duration: float | None,
    output_format: str,
) -> int:
    """Record which threads run the watched bottom halves of a live QEMU.

    Two probes per watched bottom half (where it is scheduled, where it runs), none on a
    hot path; eBPF never stops the guest. Watched by default: the snapshot jobs', which
    need the guest stopped (QEMU issue 2111). Ends on Ctrl-C, SIGTERM, after --duration or
    with the target, and prints the verdict.
    """
    from qtrace.recorder.program import load_ahead
    from qtrace.target.host import capabilities

    likely = backend == "ebpf" or (backend == "auto" and "CAP_SYS_ADMIN" in capabilities())
    program = load_ahead() if likely else None
    from qtrace.recorder.session import Recording

    reason = ""

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal reason
        reason = signal.Signals(number).name

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        parquet = output is not None and output.suffix == ".parquet"
        if output is not None and parquet:
            from qtrace.trace.writer import check_output

            check_output(output, force)
            path = output.with_name(f"{output.name}.partial.csv")
        else:
            path = output or Path(folder, "trace.csv")
        with Recording.start(
            pid,
            output=path,
            patterns=patterns,
            force=force,
            qmp_socket=qmp,
            backend=backend,
            program=program,
            stall_after_s=stall_after,
        ) as recording:
            _say(recording, pid, duration)
            deadline = None if duration is None else time.monotonic() + duration
            while not reason and not recording.ended:
                recording.poll(0.1)
                _warn(recording.warnings())
                if deadline is not None and time.monotonic() >= deadline:
                    reason = "duration"
            recording.stop("target exited" if recording.ended else reason)
            _say_end(recording)
            _warn(recording.warnings())
        if output is not None and parquet:
            _to_parquet(path, output, force)
            path = output
        return _judge(path, output is not None, output_format)


def _say(recording: Recording, pid: int, duration: float | None) -> None:
    watched, recorder = ", ".join(recording.watched), RECORDERS[recording.recorder]
    hint = f"for {duration:g} s" if duration is not None else "until Ctrl-C"
    click.echo(f"recording {watched} of process {pid} by {recorder} ({hint})", err=True)
    if recording.why:
        click.echo(f"by gdb, as eBPF cannot be used: {recording.why}", err=True)
    for ms in recording.pauses_ms().values():
        click.echo(f"the guest was paused for {ms:.1f} ms at the start", err=True)


def _say_end(recording: Recording) -> None:
    pauses = recording.pauses_ms()
    if "end" in pauses:
        click.echo(f"the guest was paused for {pauses['end']:.1f} ms at the end", err=True)
    for problem in recording.problems():
        click.echo(f"warning: {problem}", err=True)


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        # Names in it come from the target.
        click.echo(f"warning: {escape(sentence)}", err=True)


def _to_parquet(path: Path, output: Path, force: bool) -> None:
    """The rows were written as CSV, so that they outlive a kill; now give them their form."""
    from qtrace.trace.parquet import write_parquet
    from qtrace.trace.reader import read_trace

    write_parquet(read_trace(path).frame, output, force=force)
    path.unlink()


def _judge(path: Path, kept: bool, output_format: str) -> int:
    """The verdict of what was recorded. pandas is first needed here."""
    from qtrace.analysis import exit_status, judge
    from qtrace.cli.output import print_json, stderr, stdout
    from qtrace.cli.report import forget_paths, print_report, print_warnings

    report = judge([path])
    if not kept:
        forget_paths(report)
    print_warnings(stderr(), report)
    if output_format == "json":
        print_json(report)
    else:
        print_report(stdout(), report)
    return int(exit_status(report))
