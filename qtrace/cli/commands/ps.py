"""``qtrace ps``: the QEMU processes on this machine."""

from __future__ import annotations

from dataclasses import asdict

import click

from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.errors import ExitStatus


@click.command()
@format_option
def command(output_format: str) -> int:
    """List the QEMU processes here: pid, program, guest name, version, threads, what can attach."""
    from qtrace.process.process_list import list_processes

    processes = list_processes()
    if output_format == "json":
        print_json({"processes": [asdict(process) for process in processes]})
        return ExitStatus.OK
    if not processes:
        stderr().print("no QEMU process is running here")
        return ExitStatus.OK

    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("PID", justify="right")
    for title in ("PROGRAM", "NAME", "VERSION"):
        table.add_column(title, overflow="fold")
    table.add_column("THREADS", justify="right")
    table.add_column("ATTACH")
    for process in processes:
        table.add_row(
            str(process.pid),
            Text(process.program),
            Text(process.name or "-"),
            Text(process.version.partition(" ")[0] or "?"),
            str(process.threads),
            Text(", ".join([*process.attach, *filter(None, [process.hindrance])])),
        )
    stdout().print(table)
    return ExitStatus.OK
