"""What ``attach`` and ``run`` share: the options of a recording, its loop, its verdict."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qtrace.cli.options import SIZE
from qtrace.trace.schema import escape

if TYPE_CHECKING:
    from qtrace.recorder.overhead import Meter
    from qtrace.recorder.session import Recording

F = TypeVar("F", bound=Callable[..., Any])

RECORDERS = {"ebpf": "eBPF", "gdb": "gdb"}
# What stays free on the disk that is recorded to, beside room for turning raw into rows.
DISK_RESERVE = 64 << 20
CHECK_PERIOD_S = 1.0
# So many watched bottom halves are named when the recording begins; of more the number is told.
NAMED = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a recording, or a part of it; None where nothing was asked for."""

    duration: float | None = None
    max_size: int | None = None
    until_finding: bool = False
    max_overhead: float | None = None
    live: bool = False


def all_options(function: F) -> F:
    """Options of `--all` and of a recording's end."""
    for option in (
        click.option(
            "--live", is_flag=True,
            help="Show a table of the busiest bottom halves while --all records.",
        ),
        click.option(
            "--max-overhead", type=click.FloatRange(min=0, min_open=True), metavar="PERCENT",
            help="Drop the probes of --all when they cost the target more; watching goes on.",
        ),
        click.option("--until-finding", is_flag=True, help="End at the first finding."),
        click.option(
            "--max-size", type=SIZE, metavar="SIZE", help="End at this size on disk: 500M, 2G."
        ),
        click.option(
            "--stacks-every", type=click.IntRange(min=1), metavar="N",
            help="With --all, the whole stack of every Nth schedule and run, not only its end.",
        ),
        click.option(
            "--all", "everything", is_flag=True, help="Record every bottom half, not only watched."
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def check_options(everything: bool, options: dict[str, Any]) -> None:
    """Raises UsageError for what means nothing without --all."""
    for name, value in options.items():
        if value and not everything:
            raise click.UsageError(f"{name} needs --all")


@contextmanager
def ending() -> Iterator[list[str]]:
    """A list that gets the name of the signal that asks for the end."""
    reasons: list[str] = []

    def end(number: int, _frame: FrameType | None) -> None:
        reasons.append(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield reasons
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Files:
    """Where a recording grows, and what becomes of it.

    Rows are written as CSV, so that they outlive a kill; `--all` as a raw file. Parquet, and
    the rows of a raw file, are made at the end.
    """

    def __init__(self, output: Path | None, force: bool, everything: bool, folder: Path) -> None:
        """Raises OutputExists, OutputFailed."""
        self.output, self._force, self._everything = output, force, everything
        self._final = output or folder / ("trace.parquet" if everything else "trace.csv")
        converted = everything or self._final.suffix == ".parquet"
        self.growing = self._final
        if converted:
            from qtrace.trace.writer import check_kind, check_output

            check_kind(self._final)
            check_output(self._final, force)
            suffix = "raw" if everything else "partial.csv"
            self.growing = self._final.with_name(f"{self._final.name}.{suffix}")

    def settle(self) -> Path:
        """Give the trace its form. What was recorded stays until that has succeeded."""
        if self.growing == self._final:
            return self._final
        from qtrace.cli.progress import converting
        from qtrace.trace.convert import convert

        with converting(self.growing.name) as progress:
            convert(self.growing, self._final, self._force, progress)
        self.growing.unlink()
        return self._final


def record(recording: Recording, limits: Limits, reasons: list[str]) -> str:
    """Take rows until something ends the recording; says what."""
    from qtrace.cli.live import LiveView

    began = checked = time.monotonic()
    meter = begin_meter(recording, limits)
    with LiveView(recording, limits.live) as view:
        while not reasons and not recording.ended:
            rows = recording.poll(0.1)
            warn(recording)
            now = time.monotonic()
            if limits.until_finding and any(is_finding(recording, row) for row in rows):
                return "finding"
            if limits.duration is not None and now - began >= limits.duration:
                return "duration"
            if now - checked < CHECK_PERIOD_S:
                continue
            checked = now
            view.update()
            if limits.max_size is not None and size_of(recording) >= limits.max_size:
                return "size"
            if not has_room(recording):
                click.echo("warning: the disk is almost full: the recording ends", err=True)
                return "disk almost full"
            if meter is not None and limits.max_overhead is not None and meter.done():
                percent = meter.result().percent()
                if percent > limits.max_overhead:
                    recording.drop_all(f"cost {percent:.1f} %")
                    click.echo(
                        f"warning: --all cost {percent:.1f} % of the target's time: its probes "
                        "are off, watching goes on",
                        err=True,
                    )
                    meter = None
    return "target exited" if recording.ended else reasons[0]


def begin_meter(recording: Recording, limits: Limits) -> Future[Meter] | None:
    """What a hit costs is measured beside the recording: to compile that takes half a second."""
    every = recording.everything
    if every is None or limits.max_overhead is None:
        return None
    from qtrace.recorder.overhead import Meter

    meter: Future[Meter] = Future()
    pid = recording.header.detail["target"]["pid"]

    def measure() -> None:
        try:
            meter.set_result(Meter(every, pid))
        except BaseException as error:
            meter.set_exception(error)

    threading.Thread(target=measure, daemon=True).start()
    return meter


def warn(recording: Recording) -> None:
    """Say what cannot run, as soon as it is seen, and again at the end."""
    for sentence in recording.warnings():
        # Names in it come from the target.
        click.echo(f"warning: {escape(sentence)}", err=True)


def size_of(recording: Recording) -> int:
    """Bytes on disk so far."""
    path = recording.path
    return path.stat().st_size if path.is_file() else 0


def has_room(recording: Recording) -> bool:
    """Whether the disk has the reserve, and room for the rows that a raw file becomes."""
    if not recording.path.is_file():
        return True
    disk = os.statvfs(recording.path.parent)
    needed = DISK_RESERVE + (2 * size_of(recording) if recording.everything else 0)
    return disk.f_bavail * disk.f_frsize >= needed


def prepare(limits: Limits, everything: bool) -> None:
    """Import before anything is armed what a recording needs at once when the time comes."""
    if everything:
        from qtrace.cli.live import load

        load()
    if limits.until_finding:
        import qtrace.analysis  # noqa: F401


def is_finding(recording: Recording, row: Any) -> bool:
    """Whether one row proves a finding, as ``judge`` sees it."""
    if row.event != "run" or row.role == "main":
        return False
    from qtrace.analysis import exit_status, judge
    from qtrace.errors import ExitStatus
    from qtrace.trace.schema import Event
    from qtrace.trace.writer import CsvWriter

    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
        path = Path(folder, "row.csv")
        with CsvWriter(path) as writer:
            writer.write([recording.header, row, Event(row.time_ns, "detach")])
        return exit_status(judge([path])) == ExitStatus.FINDING


def announce(recording: Recording, what: str, duration: float | None) -> None:
    """The line that scripts wait for, and which site each probe of `--all` got."""
    hint = f"for {duration:g} s" if duration is not None else "until Ctrl-C"
    watched = recording.watched
    if len(watched) > NAMED:
        watched = (f"{len(watched)} bottom halves",)
    names = [*watched, *(["every bottom half"] if recording.everything else [])]
    recorder = RECORDERS[recording.recorder]
    if not names:
        names = ["no bottom half (none of the watched ones is in it)"]
    click.echo(f"recording {', '.join(names)} of {what} by {recorder} ({hint})", err=True)
    if recording.why:
        click.echo(f"by gdb, as eBPF cannot be used: {recording.why}", err=True)
    for ms in recording.pauses_ms().values():
        click.echo(f"the guest was paused for {ms:.1f} ms at the start", err=True)
    if recording.everything is not None:
        for site in recording.everything.plan.sites:
            cost = "" if site.emulated else "  (single-stepped)"
            click.echo(f"  {site.kind:<12}{site.where}: {site.instruction}{cost}", err=True)


def announce_end(recording: Recording) -> None:
    """What the recorder cost and whether all is as before, where that can be otherwise."""
    pauses = recording.pauses_ms()
    if "end" in pauses:
        click.echo(f"the guest was paused for {pauses['end']:.1f} ms at the end", err=True)
    for problem in recording.problems():
        click.echo(f"warning: {problem}", err=True)


def verdict(path: Path, recording: Recording, kept: bool, output_format: str) -> int:
    """The verdict of what was recorded. pandas is first needed here."""
    from qtrace.analysis import exit_status, judge
    from qtrace.cli.output import print_json, stderr, stdout
    from qtrace.cli.report import forget_paths, print_report, print_warnings

    only = recording.watched if recording.everything is not None else None
    report = judge([path], only=only)
    if not kept:
        forget_paths(report)
    print_warnings(stderr(), report)
    if output_format == "json":
        print_json(report)
    else:
        print_report(stdout(), report)
        sys.stdout.flush()
        if only is not None and kept:
            # Millions of rows: to read them all takes more than a recorder should.
            hint = f"statistics and lints of every bottom half: qtrace analyze {path}"
            click.echo(escape(hint), err=True)
    return int(exit_status(report))
