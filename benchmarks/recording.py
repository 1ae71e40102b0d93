"""Real recordings of any length, for whatever is to be measured on one.

python -m benchmarks.recording daemon 1000000 daemon.parquet
python -m benchmarks.recording pflash 10000000 pflash.parquet --stacks-every 1000
"""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from benchmarks.pairs import qemus
from benchmarks.watching import served_disk
from qtrace.lab.block_load import bench_command
from qtrace.lab.guest import Guest
from qtrace.lab.snapshot_jobs import save_round
from qtrace.record.all_events.all_recorder import Counts
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.convert import convert

Load = Literal["daemon", "pflash"]
REQUESTS = 10_000_019


def record(load: Load, events: int, output: Path, stacks_every: int = 0) -> Counts:
    """Record so many events of the newest QEMU here; what became of them.

    Args:
        load: ``daemon``, a storage daemon's IOThread under qemu-img bench; or ``pflash``, a guest
            that programs flash while snapshots are asked for (kvm).
        output: a CSV or Parquet file; an earlier one is overwritten.
    """
    raw = output.with_name(f"{output.name}.raw")
    with _daemon() if load == "daemon" else _pflash() as pid:
        with start_recording(
            pid, RecordingOptions(raw, force=True, everything=True, stacks_every=stacks_every)
        ) as recording:
            assert recording.everything is not None
            while recording.everything.counts.produced < events and not recording.ended:
                recording.poll(0.02)
            recording.stop("size")
        counts = recording.everything.counts
    convert(raw, output, force=True)
    raw.unlink()
    return counts


@contextmanager
def _daemon() -> Iterator[int]:
    _version, qemu = qemus()[-1]
    with served_disk(qemu, iothread=True) as (pid, url):
        command = bench_command(qemu.with_name("qemu-img"), url, REQUESTS)
        bench = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield pid
        finally:
            bench.kill()
            bench.wait()


@contextmanager
def _pflash() -> Iterator[int]:
    """The saves have a thread of their own: a round may take seconds, the ring buffers hold two."""
    _version, qemu = qemus()[-1]
    enough = threading.Event()
    with Guest(qemu, "kvm", idle_sockets=200) as guest:

        def rounds() -> None:
            for number in itertools.count():
                if enough.is_set():
                    return
                save_round(guest.qmp, f"save{number}")

        thread = threading.Thread(target=rounds)
        thread.start()
        try:
            yield guest.pid
        finally:
            enough.set()
            thread.join()


@click.command()
@click.argument("load", type=click.Choice(["daemon", "pflash"]))
@click.argument("events", type=int)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--stacks-every", type=int, default=0, help="Whole stacks of every Nth event.")
def main(load: Load, events: int, output: Path, stacks_every: int) -> None:
    """Record EVENTS events of LOAD into OUTPUT."""
    counts = record(load, events, output, stacks_every)
    click.echo(f"{output}: {counts.written} of {counts.produced} events, {counts.lost} lost")


if __name__ == "__main__":
    main()
