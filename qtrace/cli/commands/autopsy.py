"""``qtrace autopsy``: capture before kill, in one file."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.errors import ExitStatus

if TYPE_CHECKING:
    from qtrace.autopsy.capture import Said
    from qtrace.inspection.qemu import LiveQemu

WIDTH = 100
EXAMPLES = """\b
Examples:
  qtrace autopsy --pid 1234 -o vm1.autopsy
  qtrace autopsy --pid 1234 -o vm1.autopsy --when-stuck 10s
  qtrace autopsy --pid 1234 -o vm1.autopsy --when-silent 10s --qmp qmp2.sock
  qtrace autopsy --pid 1234 -o vm1.autopsy --core vm1.core
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
@click.option(
    "--when-silent", type=DURATION, metavar="TIME",
    help="Wait until QMP has not answered for so long; needs --qmp.",
)  # fmt: skip
@click.option(
    "--qmp", type=click.Path(path_type=Path, dir_okay=False), metavar="SOCKET",
    help="The QMP socket that --when-silent asks; nobody else may use it.",
)  # fmt: skip
@click.option(
    "--core", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write the core that is in it as a file, too, for gdb and qtrace inspect --core.",
)  # fmt: skip
@format_option
def command(
    pid: int,
    output: Path,
    force: bool,
    when_stuck: float | None,
    when_silent: float | None,
    qmp: Path | None,
    core: Path | None,
    output_format: str,
) -> int:
    """Capture what is known of a QEMU, before it is killed.

    Takes ten seconds at most and stops nothing: what qtrace inspect says, threads,
    descriptors and who is at their other ends, maps, the memory that this rests on (no guest
    RAM), and some seconds of recording, in one file.

    Exit status: 0, the file is written, and the core, whatever is in them; 3 one cannot be.
    """
    if when_stuck and when_silent:
        raise click.UsageError("wait for one thing: --when-stuck or --when-silent")
    if (when_silent is None) != (qmp is None):
        raise click.UsageError("--when-silent asks the socket that --qmp names: give both")
    if core == output:
        raise click.UsageError("--core and -o are two files")
    from qtrace.autopsy.archive import write_core
    from qtrace.autopsy.capture import capture
    from qtrace.autopsy.waiting import until_silent, until_stuck
    from qtrace.cli.views.autopsy_view import print_headline
    from qtrace.cli.views.verdict_view import inert
    from qtrace.errors import OutputExists
    from qtrace.process.process import Process

    for file in (output, core):
        if file is not None and file.exists() and not force:
            raise OutputExists(file)
    process = Process(pid)
    why = ""
    if when_stuck is not None:
        _wait_for(pid, f"has been stuck for {when_stuck:g} s")
        why = until_stuck(process, when_stuck)
    elif when_silent is not None and qmp is not None:
        _wait_for(pid, f"has not answered QMP for {when_silent:g} s")
        why = until_silent(process, qmp, when_silent)
    if why:
        click.echo(f"{why}: the autopsy begins", err=True)
    found = capture(process, output, force, _say, why)
    if core is not None and found.core is not None:
        write_core(core, found.core, force)
    for what in found.missing:
        stderr().print(f"warning: not in it: {what}")
    size = f"{found.size / 1e6:.1f} MB"
    if output_format == "json":
        print_json(
            {
                "file": str(output),
                "core": str(core) if core and found.core else None,
                "bytes": found.size,
                "took_s": round(found.took_s, 3),
                "missing": found.missing,
                "verdict": found.said.document["verdict"] if found.said else None,
            }
        )
    else:
        if found.said is not None:
            print_headline(stdout(), found.said.document)
        stdout().print(f"{output}: {size}, in {found.took_s:.1f} s")
        if core is not None and found.core is not None:
            gdb = shlex.join(["gdb", process.exe_path, str(core)])
            stdout().print(inert(f"{core}: {gdb}, or qtrace inspect --core {core}"))
        stdout().print(f"next: qtrace inspect --autopsy {output}")
    return ExitStatus.OK if core is None or found.core is not None else ExitStatus.ENVIRONMENT


def _wait_for(pid: int, what: str) -> None:
    click.echo(f"waiting until process {pid} {what} (until Ctrl-C)", err=True)


def _say(qemu: LiveQemu) -> Said:
    """What ``qtrace inspect`` says of it."""
    from rich.console import Console

    from qtrace.autopsy.capture import Said
    from qtrace.cli.views.answer_view import document, print_all, status, target_of
    from qtrace.inspection.inspector import Inspector
    from qtrace.inspection.looker import Looker

    looker = Looker(qemu)
    found = Inspector(looker).ask()
    target = target_of(looker)
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False, highlight=False, soft_wrap=True)
    print_all(console, looker, found.look, found.answer, {}, target)
    about = document(looker, found.look, found.answer, {}, target)
    return Said(text.getvalue(), about, status(found.answer.findings, found.answer.reasons))
