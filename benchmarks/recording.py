"""Real recordings of any length, for whatever is to be measured on one.

python -m benchmarks.recording daemon 1000000 daemon.parquet
python -m benchmarks.recording pflash 10000000 pflash.parquet --stacks-every 1000
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from benchmarks.pairs import qemus
from benchmarks.watching import storage_daemon
from qtrace.lab.guest import Guest
from qtrace.lab.jobs import save_round
from qtrace.recorder.session import Recording
from qtrace.trace.convert import convert

Load = Literal["daemon", "pflash"]
REQUESTS = 10_000_019


def record(load: Load, events: int, output: Path, stacks_every: int = 0) -> int:
    """Record so many events of the newest QEMU here; how many it became.

    Args:
        load: ``daemon``, a storage daemon's IOThread under qemu-img bench; or ``pflash``, a guest
            that programs flash while snapshots are asked for (kvm).
        output: a CSV or Parquet file; an earlier one is overwritten.
    """
    raw = output.with_name(f"{output.name}.raw")
    with _daemon() if load == "daemon" else _pflash() as (pid, work):
        with Recording.start(
            pid, output=raw, force=True, everything=True, stacks_every=stacks_every
        ) as recording:
            assert recording.everything is not None
            while recording.everything.counts.produced < events:
                next(work)
                recording.poll(0.02)
            recording.stop("size")
        counts = recording.everything.counts
    convert(raw, output, force=True)
    raw.unlink()
    return counts.produced


@contextmanager
def _daemon() -> Iterator[tuple[int, Iterator[None]]]:
    _version, qemu = qemus()[-1]
    with storage_daemon(qemu.with_name("qemu-storage-daemon"), iothread=True) as (pid, url):
        bench = subprocess.Popen(
            [qemu.with_name("qemu-img"), "bench", "-f", "raw", "-t", "none", "-d", "32",
             "-c", str(REQUESTS), url], stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield pid, itertools.repeat(None)
        finally:
            bench.kill()
            bench.wait()


@contextmanager
def _pflash() -> Iterator[tuple[int, Iterator[None]]]:
    _version, qemu = qemus()[-1]
    with Guest(qemu, "kvm", idle_sockets=200) as guest:
        rounds = (save_round(guest.qmp, f"save{number}") for number in itertools.count())
        yield guest.pid, (None for _ in rounds)


@click.command()
@click.argument("load", type=click.Choice(["daemon", "pflash"]))
@click.argument("events", type=int)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--stacks-every", type=int, default=0, help="Whole stacks of every so manieth event.")
def main(load: Load, events: int, output: Path, stacks_every: int) -> None:
    """Record EVENTS events of LOAD into OUTPUT."""
    click.echo(f"{output}: {record(load, events, output, stacks_every)} events")


if __name__ == "__main__":
    main()
