"""``qtrace inspect``: now, what is pending in which context, and who is in the way."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import SCHEMA_VERSION, format_option, print_json, stderr, stdout
from qtrace.errors import ExitStatus, NoSuchProcess

if TYPE_CHECKING:
    from qtrace.target.aio.model import Look
    from qtrace.target.aio.why import Finding
    from qtrace.target.look import Looker

# A wait that is still the same after this long is told as a finding.
APART_S = 0.5
TRIES_AFTER_HOLD = 4
YIELDING = 10
EXAMPLES = """\b
Examples:
  qtrace inspect --pid 1234
  qtrace inspect --pid 1234 --watch 1s       every second, until Ctrl-C
  qtrace inspect --core core.1234 --exe /usr/bin/qemu-system-x86_64"""


@click.command(epilog=EXAMPLES)
@click.option("--pid", type=int, help="The QEMU process (qtrace ps lists them).")
@click.option(
    "--core", type=click.Path(path_type=Path), help="A core file, of gcore or the kernel."
)
@click.option(
    "--exe", type=click.Path(path_type=Path),
    help="The executable of the core; by default the one at the path where it ran.",
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
@format_option
def command(
    pid: int | None,
    core: Path | None,
    exe: Path | None,
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
    if (pid is None) == (core is None):
        raise click.UsageError("name a process with --pid, or a core file with --core")
    if core is not None and (watch or stop or trace):
        raise click.UsageError("--watch, --gdb and --trace are for a live process")
    if exe is not None and core is None:
        raise click.UsageError("--exe belongs to --core")
    if watch and stop:
        raise click.UsageError("--gdb stops the guest for one look: leave out --watch")
    if duration and not watch:
        raise click.UsageError("--duration ends a --watch")
    from qtrace.target.look import Looker

    if core is not None:
        return _inspect_core(core, exe, output_format)
    from qtrace.target.live import LiveSource
    from qtrace.target.process import Process

    assert pid is not None
    process = Process(pid)
    looker = Looker(LiveSource(process))
    if watch is not None:
        return _watch(looker, watch, duration, trace, output_format)
    paused_ms = None
    if stop:
        from qtrace.target.stopped import look_while_stopped

        look, paused_ms = look_while_stopped(process)
    else:
        look = looker.look()
    findings, reasons = _prove(looker, look, held=stop)
    ages = _ages(trace, look)
    _show(looker, look, findings, reasons, ages, output_format, paused_ms=paused_ms)
    return _status(findings, reasons)


def _status(findings: Sequence[Finding], reasons: Sequence[str]) -> ExitStatus:
    """A finding without proof is inconclusive, and so is none where one may not be seen."""
    if any(finding.proof for finding in findings):
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if findings or reasons else ExitStatus.OK


def _prove(looker: Looker, first: Look, *, held: bool) -> tuple[list[Finding], list[str]]:
    """What a look finds, and leaves open, that a second one shows too.

    Of a process that is stopped it is what one look shows, without proof.

    Args:
        held: the process was for the look. Whatever slept has run since, to sleep again, and on
            a busy host it may not have come to that yet.
    """
    from qtrace.target.aio.unclear import still_unclear, unclear
    from qtrace.target.aio.why import confirm, explain

    findings, reasons = explain(first), unclear(first)
    if first.stopped or not (findings or reasons):
        return findings, reasons
    before = looker.look() if held else first
    for _ in range(TRIES_AFTER_HOLD if held else 1):
        time.sleep(APART_S)
        now = looker.look()
        if now.stopped:
            return explain(now), unclear(now)
        findings, reasons = confirm(before, now), still_unclear(before, now)
        if findings or not explain(now):
            break
        before = now
    return findings, reasons


def _inspect_core(core: Path, exe: Path | None, output_format: str) -> int:
    from qtrace.target.aio.unclear import unclear
    from qtrace.target.aio.why import explain
    from qtrace.target.core import CoreSource
    from qtrace.target.core_file import CoreFile
    from qtrace.target.look import Looker

    file = CoreFile(core)
    source = CoreSource(file, exe)
    if file.truncated:
        stderr().print(f"warning: {core} is truncated: {file.truncated}")
    if not source.checked:
        stderr().print(f"warning: {core} has no build id to compare with the executable's")
    looker = Looker(source)
    look = looker.look()
    findings, reasons = explain(look), unclear(look)
    for path in sorted(source.space.unmatched):
        stderr().print(f"warning: {path} is not the file that was mapped: not used")
    _show(looker, look, findings, reasons, {}, output_format, core=core)
    return _status(findings, reasons)


def _watch(
    looker: Looker, every: float, duration: float | None, trace: Path | None, output_format: str
) -> int:
    """Looks at a steady pace; a line each. The findings compare looks ``APART_S`` apart."""
    from qtrace.cli.look import finding_json, look_json, summary
    from qtrace.target.aio.unclear import still_unclear
    from qtrace.target.aio.why import confirm

    # Where processors are scarce the guest comes first: a look takes a free one, or waits until
    # somebody sleeps, but interrupts nobody.
    os.nice(YIELDING)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    looks: deque[Look] = deque()
    ends = None if duration is None else time.monotonic() + duration
    found, reasons, told = False, list[str](), list[tuple[str, str]]()
    at = time.monotonic()
    try:
        while ends is None or at < ends:
            # A line shows neither handlers nor stacks.
            look = looker.look(details=output_format == "json")
            while len(looks) > 1 and look.time_ns - looks[1].time_ns >= APART_S * 1e9:
                looks.popleft()
            old_enough = looks and look.time_ns - looks[0].time_ns >= APART_S * 1e9
            findings = confirm(looks[0], look) if old_enough else []
            reasons = still_unclear(looks[0], look) if old_enough else []
            looks.append(look)
            found = found or bool(findings)
            if output_format == "json":
                document = look_json(look, looker.name, _ages(trace, look))
                document["findings"] = [finding_json(finding) for finding in findings]
                document["unclear"] = reasons
                print(json.dumps({"schema_version": SCHEMA_VERSION, **document}), flush=True)
            else:
                verdicts = [(f.kind, f.sentence) for f in findings]
                verdicts += [("inconclusive", ", ".join(reasons))] if reasons else []
                # Each in full when it comes up.
                short = [k if (k, why) in told else f"{k}: {why}" for k, why in verdicts]
                told = verdicts
                click.echo(f"{time.strftime('%H:%M:%S')} {summary(look, short)}")
                sys.stdout.flush()
            at = max(at + every, time.monotonic())
            time.sleep(max(0.0, at - time.monotonic()))
    except KeyboardInterrupt:
        pass
    except NoSuchProcess:
        click.echo(f"process {looker.source.pid} has ended", err=True)
    if found:
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if reasons else ExitStatus.OK


def _show(
    looker: Looker,
    look: Look,
    findings: Sequence[Finding],
    reasons: Sequence[str],
    ages_ns: dict[int, int],
    output_format: str,
    *,
    core: Path | None = None,
    paused_ms: float | None = None,
) -> None:
    from qtrace.cli.look import finding_json, look_json, print_look, print_verdict, say, verdict

    target = _target(looker, core)
    if output_format == "json":
        print_json(
            {
                "verdict": verdict(findings, reasons),
                "target": target,
                "paused_ms": paused_ms,
                "findings": [finding_json(finding) for finding in findings],
                "unclear": list(reasons),
                **look_json(look, looker.name, ages_ns),
            }
        )
        return
    console = stdout()
    where = f"core {core}" if core else f"pid {target['pid']}"
    version = f" {target['version']}" if target["version"] else ""
    build_id = str(target["build_id"])[:12]
    say(console, f"{target['program']}{version}, {where}, build id {build_id or 'none'}")
    print_look(console, look, looker.name, ages_ns)
    if paused_ms is not None:
        say(console, f"the guest was paused for {paused_ms:.1f} ms at most")
    console.print()
    print_verdict(console, findings, reasons)


def _target(looker: Looker, core: Path | None) -> dict[str, Any]:
    from qtrace.cli.report import inert
    from qtrace.target.process import read_version

    elf = looker.source.binary.elf
    return {
        "pid": looker.source.pid,
        "core": inert(core) if core else None,
        "program": inert(looker.source.program),
        "version": read_version(elf),
        "build_id": elf.build_id,
    }


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
