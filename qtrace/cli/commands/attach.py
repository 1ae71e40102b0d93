"""``qtrace attach``: record a live QEMU until something ends it, then the verdict."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

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
from qtrace.cli.options import process_options
from qtrace.cli.signals import Signals

EXAMPLES = """\b
Examples:
  qtrace attach --pid 1234                   Ctrl-C ends it
  qtrace attach --pid 1234 --duration 10m -o trace.csv
  qtrace attach --pid 1234 -b 'job_*' --format json
  qtrace attach --pid 1234 --all --live --max-size 2G -o trace.parquet
  qtrace attach --pid 1234 --all --rotate 1G --keep 10 -o trace.parquet
  qtrace attach --pid $(pidof qemu-system-x86_64) --qmp /run/qmp2.sock"""


@click.command(epilog=EXAMPLES)
@process_options(required=True)
@click.option(
    "--backend",
    type=click.Choice(["auto", "ebpf", "gdb"]),
    default="auto",
    show_default=True,
    help="gdb stops the guest for some milliseconds, eBPF never; auto is eBPF where it works.",
)
@click.option(
    "--qmp",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ask QEMU itself which threads are its vCPUs and IOThreads, by a QMP socket that "
    "nobody else uses. QMP commands are in the trace without it.",
)
@stall_option
@recording_options
def command(wanted: Wanted, pid: int, backend: Any, qmp: Path | None, stall_after: float) -> int:
    """Record which threads run the watched bottom halves of a live QEMU.

    Two probes per watched bottom half (where it is scheduled, where it runs), none on a
    hot path; eBPF never stops the guest. Watched by default: the snapshot jobs', which
    need the guest stopped (QEMU issue 2111). With --all every bottom half is recorded, from
    the cheapest instructions that will do. Ends on Ctrl-C, SIGTERM, after --duration or
    with the target, and prints the verdict.
    """
    if wanted.everything:
        if backend == "gdb":
            raise click.UsageError("--all needs eBPF: gdb stops the guest at every event")
        _without_blas_threads()
    if backend != "gdb":
        tell_price()
    from qtrace.record.start import start_recording

    wanted.prepare()
    with (
        tempfile.TemporaryDirectory(prefix="qtrace-") as folder,
        Signals() as signals,
        wanted.files(folder) as files,
    ):
        options = wanted.recording(
            files, qmp_socket=qmp, backend=backend, stall_after_s=stall_after,
            # What --all costs is measured by a program that is loaded meanwhile; the screen of
            # --live looks at the target itself.
            confined=wanted.max_overhead is None and not wanted.live, keep=files.needs(),
        )  # fmt: skip
        with start_recording(pid, options) as recording:
            announce(recording, f"process {pid}", wanted, files)
            limits = wanted.limits(recording)
            stop(recording, record_until(recording, limits, signals, wanted.live), signals)
        return verdict(files, recording, wanted.output_format)


def _without_blas_threads() -> None:
    """Import numpy without the threads of its linear algebra, which nothing here needs: they would
    keep the capabilities that the recorder gives up."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
