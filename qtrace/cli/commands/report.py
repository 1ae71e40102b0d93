"""``qtrace report``: recordings as one HTML file; ``report.py`` prints a verdict."""

from __future__ import annotations

from pathlib import Path

import click

from qtrace.cli.output import format_option

EXAMPLES = """\b
Examples:
  qtrace report trace.parquet -o report.html
  qtrace report recordings/ -o report.html     the worst recordings first"""


@click.command(epilog=EXAMPLES)
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write: NAME.html.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(traces: tuple[str, ...], output: Path, force: bool, output_format: str) -> int:
    """One HTML file to look at and to send: the verdict in words, findings that lead to their place
    in a timeline, how long bottom halves waited and ran, the slowest, the lints' answers.

    TRACE is a CSV or Parquet file of `qtrace attach -o`, a folder of them, or a glob. The page
    needs no network and has 5 MB at most; what is left out for that is said in it. Exit status:
    that of `qtrace analyze`.
    """
    from qtrace.analysis import exit_status, open_traces
    from qtrace.analysis.report import judge_opened
    from qtrace.cli.output import print_json, stderr, stdout
    from qtrace.cli.progress import converting
    from qtrace.cli.views.verdict_view import print_warnings
    from qtrace.export.groundwork import Groundwork
    from qtrace.export.html import SUFFIXES, drawings_of, write_html
    from qtrace.export.output_file import check_suffix
    from qtrace.trace.writer import check_output

    check_suffix(output, SUFFIXES)
    check_output(output, force)
    opened = open_traces(traces)
    grounds = [Groundwork() for _one in opened]
    with converting("reading") as progress:
        for one in opened:
            one.progress = progress
        report = judge_opened(opened, lints=None, beside=grounds)
        print_warnings(stderr(), report)
        size = write_html(report, drawings_of(opened, report, grounds), output, force)
    if output_format == "json":
        print_json({"output": str(output), "bytes": size, "verdict": report["verdict"]})
    else:
        stdout().print(f"{output}: {report['verdict']}, {size / 1e6:.1f} MB")
    return exit_status(report)
