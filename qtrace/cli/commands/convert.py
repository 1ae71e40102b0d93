"""``qtrace convert``: one form of a trace into another, and what a killed recording left."""

from __future__ import annotations

from pathlib import Path

import click

from qtrace.cli.output import format_option
from qtrace.trace.chain import shown

EXAMPLES = """\b
Examples:
  qtrace convert trace.csv trace.parquet
  qtrace convert trace.csv --to parquet      the same
  qtrace convert trace.csv.raw trace.csv     after SIGKILL of attach --all
  qtrace convert t.chain-00001.csv whole.csv all of a chain as one file
  qtrace convert t.chain-00001.csv.raw --to csv    each file of a chain"""


@click.command(epilog=EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--to",
    type=click.Choice(["csv", "parquet"]),
    help="Name TARGET as SOURCE, with this ending; each file of a chain becomes one.",
)
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(
    source: Path, target: Path | None, to: str | None, force: bool, output_format: str
) -> int:
    """Turn SOURCE (CSV, Parquet, or the raw file of --all) into TARGET (.csv or .parquet).

    Any file of a chain (--rotate) names all of it. Memory stays bounded, however long the recording
    was.
    """
    if (target is None) == (to is None):
        raise click.UsageError("name a TARGET, or give its kind by --to")
    if to is not None and (chain := shown(source)) != source:
        return _each(chain, to, force, output_format)
    target = target or named(source, str(to))
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


def _each(chain: Path, kind: str, force: bool, output_format: str) -> int:
    """Each file of a chain as one of another kind."""
    from qtrace.cli.output import print_json, stdout
    from qtrace.cli.progress import converting
    from qtrace.trace.convert import convert_files

    with converting(chain.name) as progress:
        written = convert_files(chain, named(chain, kind), force, progress)
    if output_format == "json":
        print_json({"source": str(chain), "targets": [str(path) for path in written]})
    else:
        for path in written:
            stdout().print(str(path))
    return 0


def named(source: Path, kind: str) -> Path:
    """The name of a trace of another kind: that of what a recording left is its final one's."""
    name = source.name
    for ending in (".raw", ".partial.csv", ".csv", ".parquet"):
        name = name.removesuffix(ending)
    return source.with_name(f"{name}.{kind}")
