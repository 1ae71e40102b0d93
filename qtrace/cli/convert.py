"""``qtrace convert``: one form of a trace into another, and what a killed recording left."""

from __future__ import annotations

from pathlib import Path

import click

from qtrace.cli.output import format_option

EXAMPLES = """\b
Examples:
  qtrace convert trace.csv trace.parquet
  qtrace convert trace.csv.raw trace.csv     after SIGKILL of attach --all"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(source: Path, target: Path, force: bool, output_format: str) -> int:
    """Turn SOURCE (CSV, Parquet, or the raw file of --all) into TARGET (.csv or .parquet).

    Memory stays bounded, however long the recording was.
    """
    from qtrace.cli.output import print_json, stderr, stdout
    from qtrace.cli.progress import converting
    from qtrace.trace.convert import convert

    with converting(source.name) as progress:
        done = convert(source, target, force, progress)
    for warning in done.warnings:
        stderr().print(f"warning: {source}: {warning}")
    if not done.complete:
        stderr().print(f"warning: {source} was cut off: it has no detach row")
    if output_format == "json":
        print_json(
            {
                "source": str(source),
                "target": str(target),
                "rows": done.rows,
                "merged": done.merged,
                "complete": done.complete,
            }
        )
    else:
        stdout().print(f"{target}: {done.rows} rows")
    return 0
