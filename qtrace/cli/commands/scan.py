"""``qtrace scan``: what a binary's code tells, without running it."""

from __future__ import annotations

from pathlib import Path

import click

from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.errors import ExitStatus

EXAMPLES = """\b
Examples:
  qtrace scan /usr/bin/qemu-system-x86_64
  qtrace scan /proc/1234/exe -b 'snapshot_*' --format json"""


@click.command(epilog=EXAMPLES)
@click.argument("binary", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-b", "--bh", "patterns", multiple=True, metavar="GLOB", help="Only these.")
@format_option
def command(binary: Path, patterns: tuple[str, ...], output_format: str) -> int:
    """List the one-shot bottom halves of a QEMU BINARY: callback, call sites, context.

    Nothing is run: names, addresses and contexts follow from the code, symbols or not.
    Addresses are link-time addresses, as objdump prints them.
    """
    from fnmatch import fnmatchcase

    from qtrace.binary.elf import Elf
    from qtrace.binary.module import Module
    from qtrace.errors import NoMatch
    from qtrace.machine.arch_x86_64 import X86_64
    from qtrace.sites.scan_cache import scan_module
    from qtrace.sites.scheduler import names_without_schedule

    elf = Elf(binary)
    scan = scan_module(Module(elf, 0))
    if elf.architecture is not X86_64:
        unseen = names_without_schedule(elf, {half.name for half in scan.bottom_halves})
        if unseen:
            stderr().print(
                f"warning: {', '.join(unseen)} and maybe others are not in this list: of an "
                f"{elf.architecture.name} binary schedules that the linker inlined are not read",
                soft_wrap=True,
            )
    halves = [
        half
        for half in scan.bottom_halves
        if not patterns or any(fnmatchcase(half.name, pattern) for pattern in patterns)
    ]
    if not halves:
        raise NoMatch(
            f"no one-shot bottom half of {binary.name} matches {' or '.join(patterns)}",
            f"qtrace scan {binary} lists all {len(scan.bottom_halves)}",
        )
    if output_format == "json":
        print_json(
            {
                "binary": str(binary),
                "version": scan.version,
                "build_id": scan.build_id,
                "architecture": elf.architecture.name,
                "scheduler": {"address": f"{scan.scheduler:#x}", "found_by": scan.found_by},
                "bottom_halves": [
                    {
                        "name": half.name,
                        "callback": f"{half.callback:#x}" if half.callback else None,
                        "call_sites": [
                            {"address": f"{site.address:#x}", "context": site.context or None}
                            for site in half.sites
                        ],
                    }
                    for half in halves
                ],
            }
        )
        return ExitStatus.OK

    from rich.table import Table
    from rich.text import Text

    console = stdout()
    of = f"{binary.name} {scan.version}, build id {scan.build_id or 'none'}"
    foreign = elf.architecture is not X86_64
    console.print(f"{of}, for {elf.architecture.name} hosts" if foreign else of)
    how = "by its symbol" if scan.found_by == "symbol" else "by the names it is called with"
    console.print(f"scheduling function at {scan.scheduler:#x}, found {how}\n")
    table = Table(box=None, pad_edge=False)
    for title in ("BOTTOM HALF", "CALLBACK", "CALL SITE", "CONTEXT"):
        table.add_column(title, overflow="fold")
    for half in halves:
        callback = f"{half.callback:#x}" if half.callback else "variable"
        for index, site in enumerate(half.sites):
            first = index == 0
            table.add_row(
                Text(half.name if first else ""),
                callback if first else "",
                f"{site.address:#x}",
                Text(site.context or "?"),
            )
    console.print(table)
    return ExitStatus.OK
