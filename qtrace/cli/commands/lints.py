"""``qtrace lints``: what `qtrace analyze` looks for besides the verdict."""

from __future__ import annotations

import click

from qtrace.cli.output import format_option, print_json, stdout


@click.command()
@format_option
def command(output_format: str) -> None:
    """The lints: what else a recording can prove, by which limit, and where it comes from.

    docs/lints.md has a section about each.
    """
    # Here and not above: `qtrace --help` needs no pandas.
    from qtrace.analysis.lints import choose

    rows = [
        {
            "name": lint.name,
            "sentence": lint.sentence,
            "threshold": None if lint.threshold is None else str(lint.threshold),
            "why": lint.why,
            "needs": lint.needs or None,
            "evidence": lint.evidence,
            "source": lint.source,
        }
        for lint in choose(None)
    ]
    if output_format == "json":
        print_json({"lints": rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("lint", "threshold", "needs"):
        table.add_column(title, no_wrap=True)
    for title in ("finds", "source"):
        table.add_column(title, overflow="fold")
    for row in rows:
        cells = (row["name"], row["threshold"], row["needs"], row["sentence"], row["source"])
        table.add_row(*(Text(cell or "") for cell in cells))
    stdout().print(table)
