"""What ``attach`` and ``run`` share: their options, what they say, the verdict."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qtrace.cli.options import DURATION, SIZE
from qtrace.cli.output import format_option
from qtrace.cli.recording_files import Files
from qtrace.cli.signals import Signals
from qtrace.record.recording_options import STALL_AFTER_S, Limits, RecordingOptions
from qtrace.trace.schema import escape

if TYPE_CHECKING:
    from qtrace.record.recording import Recording

F = TypeVar("F", bound=Callable[..., Any])

RECORDERS = {"ebpf": "eBPF", "gdb": "gdb"}
# Up to so many rows of --all a recording is judged whole, in about a second.
READ_WHOLE = 300_000
# So many watched bottom halves are named when the recording begins; of more the number is told.
NAMED = 6
# Each file has the recording's header; with --all what its numbers mean, too.
SMALLEST = 64 << 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that both have, as they were typed; each field is one of ``OPTIONS``."""

    patterns: tuple[str, ...]
    output: Path | None
    force: bool
    everything: bool
    stacks_every: int | None
    max_size: int | None
    rotate: int | None
    keep: int | None
    until_finding: bool
    max_overhead: float | None
    live: bool
    duration: float | None
    compile: bool
    no_looks: bool
    verbose: bool
    output_format: str

    def check(self) -> None:
        """Raises UsageError for what means nothing without another option."""
        for name, value in (
            ("--stacks-every", self.stacks_every),
            ("--live", self.live),
            ("--max-overhead", self.max_overhead),
        ):
            if value and not self.everything:
                raise click.UsageError(f"{name} needs --all")
        if self.rotate is not None and self.output is None:
            raise click.UsageError("--rotate needs -o: what the files are called")
        if self.rotate is not None and self.rotate < SMALLEST:
            raise click.UsageError(f"--rotate: {SMALLEST >> 10}K at least")
        if self.keep is not None and self.rotate is None:
            raise click.UsageError("--keep needs --rotate")

    def files(self, folder: str) -> Files:
        """``folder`` is for what is not kept. Raises OutputExists, OutputFailed."""
        chain = self.rotate is not None
        return Files(self.output, self.force, self.everything, Path(folder), chain)

    def recording(self, files: Files, **more: Any) -> RecordingOptions:
        """``more`` are those that only one of the commands has."""
        return RecordingOptions(
            files.growing, self.patterns, self.force, everything=self.everything,
            stacks_every=self.stacks_every or 0, compiled=self.compile, looks=not self.no_looks,
            rotate=self.rotate, keep_files=self.keep, **more,
        )  # fmt: skip

    def prepare(self) -> None:
        """Import before anything is armed what a recording needs at once when the time comes; it
        is shared then with who takes the looks."""
        import qtrace.record.loop
        from qtrace.cli.views.live_view import load

        if self.everything:
            load()
        if self.until_finding:
            import qtrace.cli.until_finding  # noqa: F401

    def limits(self, recording: Recording) -> Limits:
        """What ends it."""
        until = None
        if self.until_finding:
            from qtrace.cli.until_finding import is_finding

            until = functools.partial(is_finding, recording.header)
        return Limits(self.duration, self.max_size, self.max_overhead, until)


OPTIONS = (
    click.option(
        "-b", "--bh", "patterns", multiple=True, metavar="GLOB",
        help="Watch these bottom halves (repeatable); qtrace scan lists them.",
    ),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
        help="Keep the trace: NAME.csv or NAME.parquet.",
    ),
    click.option("--force", is_flag=True, help="Overwrite the output file."),
    click.option(
        "--all", "everything", is_flag=True, help="Record every bottom half, not only watched."
    ),
    click.option(
        "--stacks-every", type=click.IntRange(min=1), metavar="N",
        help="With --all, the whole stack of every Nth schedule and run, not only its end.",
    ),
    click.option("--duration", type=DURATION, help="End the recording then: 30s, 10m, 2h."),
    click.option(
        "--max-size", type=SIZE, metavar="SIZE", help="End at this size on disk: 500M, 2G."
    ),
    click.option(
        "--rotate", type=SIZE, metavar="SIZE",
        help="Go on in a new file at this size: NAME.chain-00001.csv and so on. Any of them, or"
        " NAME.csv, names all to every command, which reads them as one.",
    ),
    click.option(
        "--keep", type=click.IntRange(min=1), metavar="N",
        help="With --rotate, keep the latest N files; what is gone is told as lost.",
    ),
    click.option("--until-finding", is_flag=True, help="End at the first finding."),
    click.option(
        "--max-overhead", type=click.FloatRange(min=0, min_open=True), metavar="PERCENT",
        help="Drop the probes of --all when they cost the target more; watching goes on.",
    ),
    click.option(
        "--live", is_flag=True,
        help="Show a table of the busiest bottom halves while --all records.",
    ),
    click.option(
        "--compile", is_flag=True,
        help="Compile the BPF programs here, with bcc, in place of those that come with qtrace.",
    ),
    click.option(
        "--no-looks", is_flag=True,
        help="Take no look at what does not go on: then nothing has to read the target's memory.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="With --all, tell where each probe is."),
    format_option,
)  # fmt: skip


def recording_options(function: F) -> F:
    """Give a command all of them, as one argument ``wanted``."""

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        wanted = Wanted(**{field.name: values.pop(field.name) for field in fields(Wanted)})
        wanted.check()
        return function(wanted=wanted, **values)

    for option in reversed(OPTIONS):
        command = option(command)
    return command  # type: ignore[return-value]


stall_option: Callable[[F], F] = click.option(
    "--stall-after", type=DURATION, default=f"{STALL_AFTER_S:g}s", show_default=True,
    metavar="TIME", help="Tell what does not go on for longer: a loop, or a pending bottom half.",
)  # fmt: skip


def record_until(recording: Recording, limits: Limits, signals: Signals, live: bool = False) -> str:
    """Take rows until something ends the recording; says what."""
    from qtrace.cli.views.live_view import LiveView
    from qtrace.record.loop import record

    with LiveView(recording, live) as view:
        return record(recording, limits, lambda: signals.reason, view.warn, each_second=view.update)


def stop(recording: Recording, reason: str, signals: Signals) -> None:
    """End it in good order; say what it cost and whether all is as before, where that can be
    otherwise."""
    signals.no_loop()
    with signals.held_off():
        recording.stop(reason)
        for sentence in recording.warnings():
            warn(sentence)
        pauses = recording.pauses_ms()
        if "end" in pauses:
            click.echo(f"the guest was paused for {pauses['end']:.1f} ms at the end", err=True)
        for problem in recording.problems():
            warn(problem)


def warn(sentence: str) -> None:
    """Say at once what was seen. Names in it come from the target."""
    click.echo(f"warning: {escape(sentence)}", err=True)


def tell_price() -> None:
    """What probes cost on this kernel, where that is more than they cost by themselves."""
    from qtrace.host.capabilities import check_ebpf
    from qtrace.host.uprobe_links import links_work

    if not links_work() and check_ebpf() is None:
        warn(
            "this kernel takes a perf event for each probe (Linux before 6.10): they are gone some "
            "seconds after the end of the recording only"
        )


def announce(recording: Recording, what: str, wanted: Wanted, files: Files) -> None:
    """The line that scripts wait for, and what is to be known of the probes."""
    files.begun()
    duration = wanted.duration
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
    if recording.note:
        warn(recording.note)
    for ms in recording.pauses_ms().values():
        click.echo(f"the guest was paused for {ms:.1f} ms at the start", err=True)
    if recording.everything is not None:
        for site in recording.everything.plan.sites if wanted.verbose else ():
            cost = "" if site.emulated else "  (single-stepped)"
            click.echo(f"  {site.kind:<12}{site.where}: {site.instruction}{cost}", err=True)
        for note in recording.everything.plan.notes:
            warn(note)


def verdict(files: Files, recording: Recording, output_format: str) -> int:
    """The exit status, when the trace is settled and judged. pandas is first needed here."""
    path, kept = files.settle(), files.output is not None
    from qtrace.analysis import exit_status, judge
    from qtrace.cli.output import print_json, stderr, stdout
    from qtrace.cli.views.lint_view import print_lints
    from qtrace.cli.views.statistics_view import print_statistics
    from qtrace.cli.views.verdict_view import forget_paths, print_report, print_warnings

    # Of millions of rows those of the watched ones will do, as long as the others can be looked
    # at later.
    every = recording.everything
    many = (
        every is not None
        and every.counts.written > READ_WHOLE
        and not recording.header.detail["by_all"]
    )
    only = recording.watched if many and kept else None
    report = judge([path], only=only)
    if not kept:
        forget_paths(report)
    print_warnings(stderr(), report)
    if output_format == "json":
        print_json(report)
    else:
        print_report(stdout(), report)
        print_statistics(stdout(), report)
        print_lints(stdout(), report)
        sys.stdout.flush()
        if only is not None:
            hint = f"statistics and lints of every bottom half: qtrace analyze {path}"
            click.echo(escape(hint), err=True)
    return int(exit_status(report))
