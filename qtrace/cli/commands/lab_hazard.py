"""``qtrace lab hazard``: what is known to go wrong in today's QEMU, shown beside its control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.cli.signals import Signals
from qtrace.errors import ExitStatus
from qtrace.lab.guest import DEFAULT_QEMU, find_qemu, kvm_works

if TYPE_CHECKING:
    from qtrace.lab.hazards.hazard import Try

EXAMPLES = """\b
Examples:
  qtrace lab hazard --list
  qtrace lab hazard job-context --qemu /opt/qemu/bin/qemu-system-x86_64
  qtrace lab hazard migrate-reads --tries 10 -o reads.parquet"""


@click.command(epilog=EXAMPLES)
@click.argument("name", required=False)
@click.option("--list", "list_only", is_flag=True, help="List the hazards.")
@click.option("--qemu", default=DEFAULT_QEMU, show_default=True, help="The QEMU to boot.")
@click.option(
    "--accel", type=click.Choice(["tcg", "kvm"]), help="kvm where it can be used, else tcg."
)
@click.option("--tries", type=click.IntRange(min=1), help="So many guests, and as many controls.")
@click.option("--timeout", type=DURATION, metavar="TIME", help="Each tries at most this long.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Record every bottom half of the first try: NAME.parquet or NAME.csv.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="A folder for cores."
)
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def command(
    name: str | None,
    list_only: bool,
    qemu: str,
    accel: Any,
    tries: int | None,
    timeout: float | None,
    output: Path | None,
    keep: Path | None,
    force: bool,
    output_format: str,
) -> int:
    """Show a hazard on a stock QEMU, and that it does not come without what it needs.

    Each try is a fresh guest of our own, and so is each control. Succeeds (0) when it came in one
    try or more and in no control, fails (1) when not. docs/hazards.md tells what each is.
    """
    from qtrace.cli.recording_files import Files
    from qtrace.lab.hazards import HAZARDS
    from qtrace.lab.hazards.hazard import Asked, show_hazard
    from qtrace.lab.workdir import work_folder

    if list_only:
        rows = [{"name": h.name, "explanation": h.explanation} for h in HAZARDS.values()]
        if output_format == "json":
            print_json({"hazards": rows})
        else:
            for row in rows:
                stdout().print(f"{row['name']:<15} {row['explanation']}")
        return 0
    if name not in HAZARDS:
        raise click.UsageError(f"name a hazard: {', '.join(HAZARDS)}")
    chosen = HAZARDS[name]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with (
        work_folder() as folder,
        Signals() as signals,
        Files(output, force, True, folder) as files,
    ):

        def progress(control: bool, number: int, one: Try) -> None:
            kind = f"control {number}" if control else f"try {number}"
            stderr().print(f"{kind}: {one.what} ({one.seconds:g} s)")

        result = show_hazard(
            chosen,
            Asked(
                find_qemu(qemu), accel or ("kvm" if kvm_works() else "tcg"), tries or chosen.tries,
                timeout or chosen.seconds, None if output is None else files.growing, keep,
                lambda: bool(signals.reason), progress,
            ),
        )  # fmt: skip
        if output is not None:
            signals.no_loop()
            files.settle()
    if output_format == "json":
        print_json(result)
    else:
        _print(result)
    return ExitStatus.OK if result["shown"] else ExitStatus.FINDING


def _print(result: dict[str, Any]) -> None:
    from qtrace.cli.views.verdict_view import inert

    console = stdout()
    console.print(f"{result['hazard']} on QEMU {inert(result['version'])}, {result['accel']}")
    for title, key in (("tries", "tries"), (f"without {result['control']}", "controls")):
        ran = result[key]
        shown = [one for one in ran if one["shown"]]
        console.print(f"{title}: it came in {len(shown)} of {len(ran)}")
        for one in ran:
            console.print(f"  {inert(one['what'])} ({one['seconds']:g} s)")
    proof = next((one["facts"]["core"] for one in result["tries"] if "core" in one["facts"]), "")
    if proof:
        console.print(f"core: {inert(proof)}")
