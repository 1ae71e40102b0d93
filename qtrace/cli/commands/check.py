"""``qtrace check``: what a person types first: healthy, or what is wrong and the next step."""

from __future__ import annotations

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.cli.signals import Signals
from qtrace.errors import ExitStatus

FOR_S, FOR_HOST_S = 10.0, 3.0
EXAMPLES = """\b
Examples:
  qtrace check --pid 1234
  qtrace check --name vm1 --for 1m
  qtrace check --host                        every QEMU here, worst first"""


@click.command(epilog=EXAMPLES)
@click.option("--pid", type=int, help="The QEMU process (qtrace ps lists them).")
@click.option("--name", metavar="GUEST", help="The QEMU of the guest of this name (-name).")
@click.option("--host", is_flag=True, help="Every QEMU here, a line each, the worst first.")
@click.option(
    "--for", "for_s", type=DURATION, metavar="TIME",
    help="Watch for so long; by default 10s, with --host 3s each.",
)  # fmt: skip
@click.option(
    "--deep", is_flag=True,
    help="Record every bottom half, too, for a second at most, and say what that cost.",
)  # fmt: skip
@click.option("--looks-only", is_flag=True, help="No recording, and no eBPF, as with --host.")
@format_option
def command(
    pid: int | None,
    name: str | None,
    host: bool,
    for_s: float | None,
    deep: bool,
    looks_only: bool,
    output_format: str,
) -> int:
    """Say whether a QEMU is healthy, or what is wrong with it and what to do next.

    Looks at it at both ends of ten seconds, sees in between whether its loops come back and who
    waits for the BQL, and records QMP commands and snapshot jobs: nothing on a hot path, and it
    is never stopped. Without the rights for eBPF it does without the recording, and says so. A
    QEMU that hangs already is told after two to three seconds.

    Exit status: 0 healthy; 1 something is wrong, proven; 3 it cannot be looked at; 4 it cannot
    be told.
    """
    if sum((pid is not None, name is not None, host)) != 1:
        raise click.UsageError("name a process by --pid, a guest by --name, or all by --host")
    if deep and (host or looks_only):
        raise click.UsageError("--deep records: leave out --host and --looks-only")
    if host:
        return _host(for_s or FOR_HOST_S, output_format)
    from qtrace.check.one_qemu import check
    from qtrace.cli.views.check_view import checked_json, print_checked, status

    if name is not None:
        from qtrace.process.process_list import find_guest

        pid = find_guest(name)
    assert pid is not None
    with Signals() as signals:
        found = check(
            pid, for_s or FOR_S, lambda: bool(signals.reason), record=not looks_only, deep=deep
        )
    if output_format == "json":
        print_json(checked_json(found))
    else:
        print_checked(stdout(), found)
    return status(found)


def _host(for_s: float, output_format: str) -> int:
    from qtrace.check.whole_host import check_host
    from qtrace.cli.views.check_view import answer, print_host

    found = check_host(for_s, answer)
    if output_format == "json":
        worst = found[0].verdict if found else None
        print_json({"verdict": worst, "qemus": [one.answer for one in found]})
    elif found:
        print_host(stdout(), found)
    else:
        stderr().print("no QEMU process is running here")
    statuses = {one.status for one in found}
    if ExitStatus.FINDING in statuses:
        return ExitStatus.FINDING
    return ExitStatus.INCONCLUSIVE if statuses - {ExitStatus.OK} else ExitStatus.OK
