"""``qtrace inspect``: now, what is pending in which context, and who is in the way."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrace.cli.options import DURATION, process_options
from qtrace.cli.output import html_format_option, print_json, print_page, stderr, stdout
from qtrace.errors import ExitStatus, HasChanged, NoSuchProcess

if TYPE_CHECKING:
    from qtrace.cli.views.watch_view import WatchView
    from qtrace.inspection.answer import Answer
    from qtrace.inspection.held_look import HeldLook
    from qtrace.inspection.looker import Looker
    from qtrace.qemu.aio.model import Look

YIELDING = 10
EXAMPLES = """\b
Examples:
  qtrace inspect --pid 1234
  qtrace inspect --pid 1234 --watch 1s       every second, until Ctrl-C
  qtrace inspect --pid 1234 --format html > page.html    who waits for whom
  qtrace inspect --core core.1234 --exe /usr/bin/qemu-system-x86_64"""


@click.command(epilog=EXAMPLES)
@process_options(required=False)
@click.option(
    "--core", type=click.Path(path_type=Path), help="A core file, of gcore or the kernel."
)
@click.option(
    "--autopsy", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="What qtrace autopsy has captured, on any machine.",
)  # fmt: skip
@click.option(
    "--exe", type=click.Path(path_type=Path),
    help="The executable of the core; by default the one at the path where it ran.",
)  # fmt: skip
@click.option(
    "--sysroot", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="The folder below which the core's files lie: a chroot's, a container's.",
)  # fmt: skip
@click.option("--watch", type=DURATION, metavar="TIME", help="Look again and again: 1s, 100ms.")
@click.option("--duration", type=DURATION, help="End --watch after this time.")
@click.option(
    "--gdb", "stop", is_flag=True,
    help="Stop it for some milliseconds, as gdb does, to see the stacks of threads that run.",
)  # fmt: skip
@click.option(
    "--trace", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The file that a running qtrace attach writes: it knows since when something is pending.",
)  # fmt: skip
@html_format_option
def command(
    pid: int | None,
    core: Path | None,
    autopsy: Path | None,
    exe: Path | None,
    sysroot: Path | None,
    watch: float | None,
    duration: float | None,
    stop: bool,
    trace: Path | None,
    output_format: str,
) -> int:
    """Show what is pending in each AioContext of a QEMU, and who is in the way.

    Reads a live QEMU through /proc: it is never stopped (but for --gdb, which says how
    long). When something seems stuck, a second look half a second later shows whether it
    stays so.

    Exit status: 0 nothing is stuck; 1 a finding, proved by two looks or by a circle of
    waiting; 4 a core, or a process that is stopped, shows it but cannot prove it, or what
    would show it cannot be read.
    """
    if autopsy is not None:
        if any((pid, core, exe, sysroot, watch, duration, stop, trace)):
            raise click.UsageError("--autopsy goes with --format alone")
        from qtrace.cli.views.autopsy_view import show

        return show(autopsy, output_format)
    if pid is not None and core is not None:
        raise click.UsageError("--pid is a live process, --core one that is dead: give one of them")
    if pid is None and core is None:
        raise click.UsageError("name a process with --pid, a core with --core, or an --autopsy")
    if core is not None and (watch or stop or trace):
        raise click.UsageError("--watch, --gdb and --trace are for a live process")
    if exe is not None and core is None:
        raise click.UsageError("--exe belongs to --core")
    if sysroot is not None and core is None:
        raise click.UsageError("--sysroot belongs to --core")
    if watch and stop:
        raise click.UsageError("--gdb stops the guest for one look: leave out --watch")
    if watch and output_format == "html":
        raise click.UsageError("a page shows one moment: leave out --watch")
    if duration and not watch:
        raise click.UsageError("--duration ends a --watch")
    from qtrace.cli.views.answer_view import status
    from qtrace.inspection.looker import Looker

    if core is not None:
        return _inspect_core(core, exe, sysroot, output_format)
    from qtrace.inspection.inspector import Inspector
    from qtrace.inspection.qemu import LiveQemu
    from qtrace.process.process import Process

    assert pid is not None
    process = Process(pid)
    looker = Looker(LiveQemu(process))
    if watch is not None:
        return _watch(looker, watch, duration, trace, output_format)
    held = None
    if stop:
        from qtrace.inspection.held_look import look_while_stopped

        held = look_while_stopped(process)
    look = held.look if held else looker.look()
    found = Inspector(looker).ask(look, held=stop)
    # A held look shows more stacks; else the last one is what the findings are about.
    shown = look if held else found.look
    _show(looker, shown, found.answer, _ages(trace, shown), output_format, held=held)
    return status(found.answer.findings, found.answer.reasons)


def _inspect_core(core: Path, exe: Path | None, sysroot: Path | None, output_format: str) -> int:
    from qtrace.cli.views.answer_view import status
    from qtrace.cli.views.verdict_view import inert
    from qtrace.inspection.answer import answer
    from qtrace.inspection.looker import Looker
    from qtrace.inspection.qemu import Qemu
    from qtrace.inspection.request_look import Requests
    from qtrace.inspection.request_proof import shown_by
    from qtrace.process.core_file import CoreFile
    from qtrace.process.core_source import CoreSource
    from qtrace.qemu.aio.findings import explain
    from qtrace.qemu.aio.inconclusive import unclear_in_core

    file = CoreFile(core)
    source = CoreSource(file, exe, sysroot)
    if file.truncated:
        stderr().print(f"warning: {core} is truncated: {file.truncated}")
    if not source.checked:
        stderr().print(f"warning: {core} has no build id to compare with the executable's")
    looker = Looker(Qemu(source))
    look = looker.look()
    findings, reasons = explain(look), unclear_in_core(look)
    for one in look.absent:
        stderr().print(f"warning: {inert(one)}")
    if look.absent:
        stderr().print("hint: name the folder below which the core's files lie with --sysroot")
    told = answer(look, findings, reasons, shown_by([Requests(looker).look(look)]))
    _show(looker, look, told, {}, output_format, core=core)
    return status(findings, reasons)


def _watch(
    looker: Looker, every: float, duration: float | None, trace: Path | None, output_format: str
) -> int:
    """Looks at a steady pace: a line each, or on a terminal the whole screen."""
    from qtrace.inspection.watch import Watch

    # Where processors are scarce the guest comes first: a look takes a free one, or waits until
    # somebody sleeps, but interrupts nobody.
    os.nice(YIELDING)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    watched = Watch(looker)
    ends = None if duration is None else time.monotonic() + duration
    found, reasons = False, tuple[str, ...]()
    at = time.monotonic()
    try:
        with _shown(looker, trace, output_format) as view:
            while ends is None or at < ends:
                seen = watched.see(time.monotonic_ns(), details=view.details)
                reasons = seen.reasons
                found = found or bool(seen.findings)
                view.show(seen)
                at = max(at + every, time.monotonic())
                time.sleep(max(0.0, at - time.monotonic()))
    except KeyboardInterrupt:
        pass
    except HasChanged:
        raise
    except NoSuchProcess:
        click.echo(f"process {looker.source.pid} has ended", err=True)
    if found:
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if reasons else ExitStatus.OK


def _shown(looker: Looker, trace: Path | None, output_format: str) -> WatchView:
    from qtrace.cli.views.watch_view import JsonLines, Lines, Whole

    def ages_ns(look: Look) -> dict[int, int]:
        return _ages(trace, look)

    if output_format == "json":
        return JsonLines(looker, ages_ns)
    return Whole(looker, ages_ns) if sys.stdout.isatty() else Lines()


def _show(
    looker: Looker,
    look: Look,
    answer: Answer,
    ages_ns: dict[int, int],
    output_format: str,
    *,
    core: Path | None = None,
    held: HeldLook | None = None,
) -> None:
    from qtrace.cli.views.answer_view import document, print_all, target_of

    target = target_of(looker, core)
    if output_format == "json":
        print_json(document(looker, look, answer, ages_ns, target, held))
    elif output_format == "html":
        from qtrace.export.look_page import look_page

        print_page(look_page(document(looker, look, answer, ages_ns, target, held)))
    else:
        print_all(stdout(), looker, look, answer, ages_ns, target, held)


def _ages(trace: Path | None, look: Look) -> dict[int, int]:
    """How long bottom halves have been pending, as a recording that is being written knows."""
    if trace is None:
        return {}
    from qtrace.analysis import pending_since

    since = pending_since(trace)
    keys = {half.address: (half.cb, half.ctx, half.opaque) for half in look.bottom_halves}
    return {
        address: look.time_ns - since[key]
        for address, key in keys.items()
        if key in since and since[key] <= look.time_ns
    }
