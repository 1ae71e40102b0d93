"""``qtrace attach``: record a live QEMU until something ends it, then the verdict."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from qtrace.cli.options import DURATION, watch_options
from qtrace.cli.output import format_option
from qtrace.cli.record import (
    Files,
    Limits,
    all_options,
    announce,
    announce_end,
    check_options,
    ending,
    prepare,
    record,
    verdict,
    warn,
)  # fmt: skip

EXAMPLES = """\b
Examples:
  qtrace attach --pid 1234                   Ctrl-C ends it
  qtrace attach --pid 1234 --duration 10m -o trace.csv
  qtrace attach --pid 1234 -b 'job_*' --format json
  qtrace attach --pid 1234 --all --live --max-size 2G -o trace.parquet
  qtrace attach --pid $(pidof qemu-system-x86_64) --qmp /run/qmp2.sock"""


@click.command(epilog=EXAMPLES)
@click.option("--pid", type=int, required=True, help="The QEMU process (qtrace ps lists them).")
@watch_options
@all_options
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
    everything: bool,
    stacks_every: int | None,
    max_size: int | None,
    until_finding: bool,
    max_overhead: float | None,
    live: bool,
    backend: Any,
    stall_after: float,
    duration: float | None,
    output_format: str,
) -> int:
    """Record which threads run the watched bottom halves of a live QEMU.

    Two probes per watched bottom half (where it is scheduled, where it runs), none on a
    hot path; eBPF never stops the guest. Watched by default: the snapshot jobs', which
    need the guest stopped (QEMU issue 2111). With --all every bottom half is recorded, from
    the cheapest instructions that will do. Ends on Ctrl-C, SIGTERM, after --duration or
    with the target, and prints the verdict.
    """
    from qtrace.recorder.program import load_ahead
    from qtrace.target.host import capabilities

    check_options(
        everything,
        {"--stacks-every": stacks_every, "--live": live, "--max-overhead": max_overhead},
    )
    if everything and backend == "gdb":
        raise click.UsageError("--all needs eBPF: gdb stops the guest at every event")
    likely = backend == "ebpf" or (backend == "auto" and "CAP_SYS_ADMIN" in capabilities())
    program = load_ahead(everything=everything) if likely or everything else None
    from qtrace.recorder.start import start_recording

    limits = Limits(duration, max_size, until_finding, max_overhead, live)
    prepare(limits, everything)
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder, ending() as reasons:
        files = Files(output, force, everything, Path(folder))
        with start_recording(
            pid, output=files.growing, patterns=patterns, force=force, qmp_socket=qmp,
            backend=backend, program=program, everything=everything,
            stacks_every=stacks_every or 0,
            stall_after_s=stall_after,
        ) as recording:  # fmt: skip
            announce(recording, f"process {pid}", duration)
            recording.stop(record(recording, limits, reasons))
            warn(recording)
            announce_end(recording)
        return verdict(files.settle(), recording, output is not None, output_format)
