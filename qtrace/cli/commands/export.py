"""``qtrace export``: a recording as a Perfetto trace."""

from __future__ import annotations

from pathlib import Path

import click

from qtrace.cli.output import format_option

EXAMPLES = """\b
Examples:
  qtrace export trace.parquet -o trace.perfetto-trace
Open it at https://ui.perfetto.dev (which keeps it on your machine)."""


@click.command(epilog=EXAMPLES)
@click.argument("trace", metavar="TRACE")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write: NAME.perfetto-trace.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(trace: str, output: Path, force: bool, output_format: str) -> int:
    """A recording as a timeline for Perfetto: threads with their runs and polls, an arrow from each
    schedule to its run, what was pending in each context, commands, jobs, findings, lost events.

    TRACE is a CSV or Parquet file of `qtrace attach -o`. Findings are slices that name their rows.
    """
    import dataclasses

    from qtrace.analysis import Trace
    from qtrace.analysis.report import judge_opened
    from qtrace.cli.output import print_json, stderr, stdout
    from qtrace.cli.progress import converting
    from qtrace.cli.views.verdict_view import inert
    from qtrace.export.drawing import drawing_of
    from qtrace.export.groundwork import Groundwork
    from qtrace.export.output_file import check_suffix
    from qtrace.export.perfetto import SUFFIXES, export
    from qtrace.trace.writer import check_output

    check_suffix(output, SUFFIXES)
    check_output(output, force)
    one, ground = Trace(trace), Groundwork()
    with converting(trace) as progress:
        one.progress = progress
        drawing = drawing_of(one, judge_opened([one], lints=None, beside=[ground]), ground)
        done = export(drawing, output, force)
    for text in one.view.warnings:
        stderr().print(inert(f"warning: {trace}: {text}"))
    if output_format == "json":
        print_json({"trace": trace, "output": str(output), **dataclasses.asdict(done)})
        return 0
    stdout().print(
        f"{output}: {done.runs:,} runs, {done.schedules:,} schedules, {done.flows:,} of them with"
        f" an arrow to their run, {done.findings:,} findings"
    )
    return 0
