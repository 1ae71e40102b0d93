"""``qtrace gdb-script``: where the commands for gdb are."""

from __future__ import annotations

from pathlib import Path

import click

import qtrace
from qtrace.cli.output import format_option, print_json
from qtrace.errors import ExitStatus

SCRIPT = Path(qtrace.__file__).parent / "gdbscripts/aio.py"


@click.command()
@format_option
def command(output_format: str) -> int:
    """Print the path of the commands for gdb: gdb -x "$(qtrace gdb-script)" -p PID."""
    if output_format == "json":
        print_json({"path": str(SCRIPT)})
    else:
        click.echo(SCRIPT)
    return ExitStatus.OK
