"""``qtrace autopsy``: capture before kill, in one file."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.errors import ExitStatus

if TYPE_CHECKING:
    from qtrace.autopsy.capture import Said
    from qtrace.process.process import Process

WIDTH = 100
LOOK_EVERY_S = 1.0
EXAMPLES = """\b
Examples:
  qtrace autopsy --pid 1234 -o vm1.autopsy
  qtrace autopsy --pid 1234 -o vm1.autopsy --when-stuck 10s
  qtrace inspect --autopsy vm1.autopsy       what it says, on any machine"""


@click.command(epilog=EXAMPLES)
@click.option("--pid", type=int, required=True, help="The QEMU process (qtrace ps lists them).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="The file to write; only its owner may read it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@click.option(
    "--when-stuck", type=DURATION, metavar="TIME",
    help="Wait until looks have shown a hang for so long.",
)  # fmt: skip
@format_option
def command(
    pid: int, output: Path, force: bool, when_stuck: float | None, output_format: str
) -> int:
    """Capture what is known of a QEMU, before it is killed.

    Takes ten seconds at most and stops nothing: what qtrace inspect says, threads,
    descriptors and who is at their other ends, maps, the memory that this rests on (no guest
    RAM), and some seconds of recording, in one file.

    Exit status: 0, the file is written, whatever is in it; 3 it cannot be.
    """
    from qtrace.autopsy.capture import capture
    from qtrace.errors import OutputExists
    from qtrace.process.process import Process

    if output.exists() and not force:
        raise OutputExists(output)
    process = Process(pid)
    why = ""
    if when_stuck is not None:
        why = _wait_until_stuck(process, when_stuck)
        click.echo(f"{why}: the autopsy begins", err=True)
    found = capture(process, output, force, _say, why)
    for what in found.missing:
        stderr().print(f"warning: not in it: {what}")
    size = f"{found.size / 1e6:.1f} MB"
    if output_format == "json":
        print_json(
            {
                "file": str(output),
                "bytes": found.size,
                "took_s": round(found.took_s, 3),
                "missing": found.missing,
                "verdict": found.said.document["verdict"] if found.said else None,
            }
        )
    else:
        stdout().print(f"{output}: {size}, in {found.took_s:.1f} s")
        stdout().print(f"next: qtrace inspect --autopsy {output}")
    return ExitStatus.OK


def _wait_until_stuck(process: Process, for_s: float) -> str:
    """Look again and again until something has been stuck for so long; in words."""
    from qtrace.inspection.inspector import Inspector
    from qtrace.inspection.looker import Looker
    from qtrace.inspection.qemu import LiveQemu
    from qtrace.qemu.aio.findings import COMPUTES

    inspector = Inspector(Looker(LiveQemu(process)))
    since: float | None = None
    while True:
        began = time.monotonic()
        findings = [f for f in inspector.ask().answer.findings if f.proof and f.kind != COMPUTES]
        if not findings:
            since = None
        elif since is None:
            since = began
        elif time.monotonic() - since >= for_s:
            return f"{findings[0].kind} for {time.monotonic() - since:.0f} s"
        time.sleep(max(0.0, began + LOOK_EVERY_S - time.monotonic()))


def _say(process: Process) -> Said:
    """What ``qtrace inspect`` says of it."""
    from rich.console import Console

    from qtrace.autopsy.capture import Said
    from qtrace.cli.views.answer_view import document, print_all, status, target_of
    from qtrace.inspection.inspector import Inspector
    from qtrace.inspection.looker import Looker
    from qtrace.inspection.qemu import LiveQemu

    looker = Looker(LiveQemu(process))
    found = Inspector(looker).ask()
    target = target_of(looker)
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False, highlight=False, soft_wrap=True)
    print_all(console, looker, found.look, found.answer, {}, target)
    about = document(looker, found.look, found.answer, {}, target)
    return Said(text.getvalue(), about, status(found.answer.findings, found.answer.reasons))
