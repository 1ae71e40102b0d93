"""`qtrace analyze`: the verdict from files alone."""

from __future__ import annotations

import click

from qtrace.cli.lint_options import threshold_option
from qtrace.cli.output import format_option, print_json, stderr, stdout


@click.command()
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True)
@click.option(
    "-b",
    "--bh",
    "patterns",
    metavar="GLOB",
    multiple=True,
    help="Judge the bottom halves of these names, not those the recording watched.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Running in a nested aio_poll() for a device's access is a finding too.",
)
@click.option(
    "--lint",
    "lints",
    metavar="NAME",
    multiple=True,
    help="Let this lint count for the exit status (repeatable; all for each); qtrace lints lists"
    " them.",
)
@threshold_option
@click.option(
    "--commands", is_flag=True,
    help="The timeline instead: each QMP command and job, what ran inside, what waited.",
)  # fmt: skip
@click.option(
    "--verdict-only", is_flag=True,
    help="No statistics, no lints: a day of --all is judged in the memory that the watched bottom"
    " halves take. -b takes whole names then.",
)  # fmt: skip
@format_option
def command(
    traces: tuple[str, ...],
    patterns: tuple[str, ...],
    strict: bool,
    lints: tuple[str, ...],
    thresholds: dict[str, str],
    commands: bool,
    verdict_only: bool,
    output_format: str,
) -> int:
    """The verdict of recorded traces, on any machine.

    TRACE is a CSV or Parquet file of `qtrace attach -o`, a folder of them, or a glob. Without
    --lint every lint looks and tells what it found, but the exit status is the verdict's alone.
    It is the same with --commands.
    """
    # Here and not above: `qtrace --help` needs no pandas.
    from qtrace.analysis import exit_status, judge_watched, open_traces, timelines
    from qtrace.analysis.report import judge_opened
    from qtrace.cli.progress import converting
    from qtrace.cli.views.lint_view import print_lints
    from qtrace.cli.views.statistics_view import print_statistics
    from qtrace.cli.views.timeline_view import print_timelines
    from qtrace.cli.views.verdict_view import print_report, print_warnings

    if verdict_only:
        if lints or commands or thresholds:
            raise click.UsageError("--verdict-only leaves out lints and --commands: name neither")
        report = judge_watched(traces, patterns, strict)
        print_warnings(stderr(), report)
        if output_format == "json":
            print_json(report)
        else:
            print_report(stdout(), report)
        return exit_status(report)
    opened = open_traces(traces)
    with converting("reading") as progress:
        for trace in opened:
            trace.progress = progress
        report = judge_opened(opened, patterns, strict, lints=lints or None, thresholds=thresholds)
    print_warnings(stderr(), report)
    if output_format == "json":
        more = {"timelines": timelines(opened)} if commands else {}
        print_json({**report, **more})
    elif commands:
        print_timelines(stdout(), timelines(opened))
    else:
        console = stdout()
        print_report(console, report)
        print_statistics(console, report)
        print_lints(console, report)
    return exit_status(report)
