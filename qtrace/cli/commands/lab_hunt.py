"""``qtrace lab hunt``: many short lives of our own guests, in search of what QEMU does wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.cli.signals import Signals
from qtrace.errors import ExitStatus
from qtrace.lab.guest import DEFAULT_QEMU, kvm_works

if TYPE_CHECKING:
    from qtrace.lab.hunt.cell import Cell, Result

EXAMPLES = """\b
Examples:
  qtrace lab hunt --list
  qtrace lab hunt --for 10m -o rows.csv --keep cores/
  qtrace lab hunt --device 'virtio-blk*' --command commit --iothread on --accel kvm
  qtrace lab hunt --qemu /usr/bin/qemu-system-x86_64 --qemu /opt/qemu/bin/qemu-system-x86_64
  qtrace lab hunt --device nvme --command mirror --iothread off --accel kvm --seed h1-0f3ac2d1"""

IOTHREADS = {"on": (True,), "off": (False,), "both": (False, True)}
ACCELS: dict[str, tuple[Any, ...]] = {"kvm": ("kvm",), "tcg": ("tcg",), "both": ("kvm", "tcg")}


@click.command(epilog=EXAMPLES)
@click.option("--list", "list_only", is_flag=True, help="List the devices and commands.")
@click.option(
    "--qemu",
    "qemus",
    multiple=True,
    default=(DEFAULT_QEMU,),
    show_default=True,
    help="The QEMUs to boot (repeatable).",
)
@click.option("--device", "devices", multiple=True, metavar="GLOB", help="Of these (repeatable).")
@click.option("--command", "commands", multiple=True, metavar="GLOB", help="Likewise.")
@click.option(
    "--iothread",
    type=click.Choice(list(IOTHREADS)),
    default="both",
    show_default=True,
    help="Whether an IOThread serves the device, where it can.",
)
@click.option("--accel", type=click.Choice(list(ACCELS)), default="both", show_default=True)
@click.option(
    "--seed",
    default="1",
    show_default=True,
    help="Any text; or the seed of one cell, to repeat it.",
)
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="So many cells of each kind.")
@click.option("--cells", type=click.IntRange(min=1), help="At most so many in all.")
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="Begin none later than that.")
@click.option(
    "--cell-time",
    type=DURATION,
    default="5s",
    show_default=True,
    metavar="TIME",
    help="How long each gives commands.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 2), default=1, show_default=True, help="Guests at once."
)
@click.option("--traced", is_flag=True, help="Record every bottom half, and let the lints look.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A row for each cell: NAME.csv or NAME.parquet.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for cores, recordings and looks.",
)
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(
    list_only: bool,
    qemus: tuple[str, ...],
    devices: tuple[str, ...],
    commands: tuple[str, ...],
    iothread: str,
    accel: str,
    seed: str,
    repeat: int,
    cells: int | None,
    for_s: float | None,
    cell_time: float,
    jobs: int,
    traced: bool,
    output: Path | None,
    keep: Path | None,
    force: bool,
    output_format: str,
) -> int:
    """Boot guests whose devices are at work, give their QEMU commands at random times, and tell
    which QEMU died, hung, or lied to its guest.

    Ctrl-C ends it: what is done is kept. Status 0: all was well; 1: something was found.
    """
    from qtrace.lab.hunt.cell import FINDINGS, Limits
    from qtrace.lab.hunt.cell_plan import build_of, plan
    from qtrace.lab.hunt.hunting import find_qemu_img, hunt, make_disks
    from qtrace.lab.hunt.result_rows import RowFile, as_row, ordered
    from qtrace.trace.writer import check_output

    if list_only:
        _print_list(output_format)
        return 0
    if output is not None:
        if output.suffix not in (".csv", ".parquet"):
            raise click.UsageError(f"{output}: name it NAME.csv or NAME.parquet")
        check_output(output, force)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    chosen = plan(
        [build_of(qemu) for qemu in qemus], devices, commands, IOTHREADS[iothread], ACCELS[accel],
        seed=seed, repeat=repeat,
    )[:cells]  # fmt: skip
    if "kvm" in ACCELS[accel] and not kvm_works():
        stderr().print("warning: KVM cannot be used here: its cells are left out")
    results: list[Result] = []
    qemu_img = find_qemu_img()
    with (
        tempfile.TemporaryDirectory(prefix="qtrace-hunt-") as folder,
        Signals() as signals,
        RowFile(output) if output is not None else nullcontext() as rows,
        _progress(len(chosen)) as progress,
    ):
        make_disks(Path(folder), qemu_img)
        limits = Limits(cell_time, Path(folder), keep, traced, lambda: bool(signals.reason))
        for result in hunt(chosen, limits, qemu_img, at_once=jobs, for_s=for_s):
            results.append(result)
            progress(result)
            if rows is not None:
                rows.add(result)
    if output_format == "json":
        counts = ordered({r.outcome: sum(o.outcome == r.outcome for o in results) for r in results})
        print_json(
            {"seed": seed, "planned": len(chosen), "outcomes": counts,
             "cells": [as_row(result) for result in results]}
        )  # fmt: skip
    else:
        _print_results(results, chosen, seed)
    return ExitStatus.FINDING if any(r.outcome in FINDINGS for r in results) else ExitStatus.OK


def _print_list(output_format: str) -> None:
    from qtrace.lab.hunt.devices import DEVICES
    from qtrace.lab.hunt.qmp_turns import COMMANDS

    if output_format == "json":
        print_json({"devices": list(DEVICES), "commands": list(COMMANDS)})
        return
    for device in DEVICES.values():
        can = "with or without an IOThread" if device.can_have_iothread else ""
        stdout().print(f"device   {device.name:<20}{can}".rstrip())
    for name in COMMANDS:
        stdout().print(f"command  {name}")


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A line for whatever was found; on a terminal a bar below."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from qtrace.cli.views.verdict_view import inert
    from qtrace.lab.hunt.cell import FINDINGS

    console = stderr()
    columns = (TextColumn("cells"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("cells", total=total)

        def done(result: Result) -> None:
            bar.advance(task)
            if result.outcome in FINDINGS:
                console.print(f"{result.outcome}: {result.cell.name}: {inert(result.what)}")

        yield done


def _print_results(results: Sequence[Result], chosen: Sequence[Cell], seed: str) -> None:
    """How many of each outcome, by build, device and command; and each thing that was found."""
    from rich.table import Table

    from qtrace.cli.views.verdict_view import inert
    from qtrace.lab.hunt.cell import FINDINGS, OUTCOMES
    from qtrace.lab.hunt.result_rows import count

    console = stdout()
    seen = [outcome for outcome in OUTCOMES if any(r.outcome == outcome for r in results)]
    for by in ("version", "device", "command"):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(by)
        for outcome in seen:
            table.add_column(outcome, justify="right")
        for name, counts in count(results, by).items():
            table.add_row(name, *(str(counts.get(outcome, "")) for outcome in seen))
        console.print(table)
        console.print()
    for result in results:
        if result.outcome in FINDINGS:
            console.print(f"{result.outcome}: {result.cell.name}: {inert(result.what)}")
    for what in sorted({r.what for r in results if r.outcome == "skipped"}):
        console.print(f"skipped: {what}")
    found = sum(result.outcome in FINDINGS for result in results)
    console.print(
        f"{found} of {len(results)} cells found something ({len(chosen)} planned, seed {seed})"
    )
