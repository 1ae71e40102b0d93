"""qtrace doctor: each requirement, ok or missing, and the command that mends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click
from rich.table import Table
from rich.text import Text

from qtrace.cli.options import process_options
from qtrace.cli.output import format_option, print_json, stdout
from qtrace.cli.views.verdict_view import inert
from qtrace.errors import ExitStatus
from qtrace.host.capabilities import Check, Need, check_host
from qtrace.record.ebpf.host_checks import check_recorder
from qtrace.sites.target_check import check_target

COLOURS = {"ok": "green", "missing": "red", "untried": "yellow"}


@click.command()
@process_options(required=False, text="Also check whether this QEMU process can be recorded.")
@format_option
def command(pid: int | None, output_format: str) -> int:
    """Say what recording needs, what is missing, and the command that mends it.

    Exit status: 0 when eBPF recording can work here (and on the process of --pid), 3 when
    not. What only the gdb recorder needs does not count.
    """
    host = check_host()
    checks = [*host, *check_recorder(try_probe=_all_ok(host, "ebpf"))]
    if pid is not None:
        checks += check_target(pid)
    ready = _all_ok(checks, "ebpf") and _all_ok(checks, "target")
    if output_format == "json":
        payload = {"ready": ready, "checks": [dataclasses.asdict(check) for check in checks]}
        print_json(payload)
    else:
        _print_table(checks, ready)
    return ExitStatus.OK if ready else ExitStatus.ENVIRONMENT


def _all_ok(checks: Sequence[Check], need: Need) -> bool:
    return all(check.ok for check in checks if need in check.needed_for)


def _print_table(checks: Sequence[Check], ready: bool) -> None:
    console = stdout()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("REQUIREMENT", "STATE", "FOR", "FOUND"):
        table.add_column(column, overflow="fold")
    for check in checks:
        state = Text(check.state, COLOURS[check.state])
        table.add_row(check.name, state, ", ".join(check.needed_for), inert(check.detail))
    console.print(table)
    # Several requirements may be mended by one command: it is shown once.
    remedies: dict[str, list[str]] = {}
    for check in checks:
        if check.remedy:
            remedies.setdefault(check.remedy, []).append(check.name)
    if remedies:
        console.print("\nTo mend:")
    for remedy, names in remedies.items():
        console.print(f"  {inert(remedy)}  [{', '.join(names)}]")
    console.print(f"\neBPF recording {'can' if ready else 'cannot'} work here.")
