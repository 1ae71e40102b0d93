"""``qtrace lab``: boot our own guest on the installed QEMU and show one verdict end to end."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from qtrace.cli.options import DURATION
from qtrace.cli.output import format_option, print_json, stderr, stdout
from qtrace.cli.recording_files import Files
from qtrace.cli.signals import Signals
from qtrace.lab.guest import DEFAULT_QEMU, find_qemu
from qtrace.lab.scenario import Scenario, Setup, run_scenario
from qtrace.lab.scenarios import SCENARIOS
from qtrace.lab.workdir import work_folder

EXAMPLES = """\b
Examples:
  qtrace lab --list
  qtrace lab vcpu-poll
  qtrace lab vcpu-poll --accel kvm --format json -o trace.csv
  qtrace lab stranded --all -o sample.parquet
  qtrace lab main-loop --qemu /opt/qemu/bin/qemu-system-x86_64"""


# What is no scenario: the modules beside this one have them.
SCENARIO, OTHERS = "scenario", ("hunt", "hazard")


class Lab(click.Group):
    """``qtrace lab SCENARIO``, and ``qtrace lab hunt`` and ``hazard``, which have own options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = (SCENARIO, *OTHERS, *self.get_help_option_names(ctx))
        if not args or args[0] not in known:
            args = [SCENARIO, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(OTHERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == SCENARIO:
            return scenario_command
        if cmd_name not in OTHERS:
            return None
        module = importlib.import_module(f"qtrace.cli.commands.lab_{cmd_name}")
        found: click.Command = module.command
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Those of a scenario, which needs no name of its own."""
        scenario_command.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.command("scenario")
@click.argument("scenario", type=click.Choice(list(SCENARIOS)), required=False)
@click.option("--list", "list_only", is_flag=True, help="List the scenarios.")
@click.option("--qemu", default=DEFAULT_QEMU, show_default=True, help="The QEMU to boot.")
@click.option(
    "--accel",
    type=click.Choice(["tcg", "kvm"]),
    default="tcg",
    show_default=True,
    help="tcg works everywhere; kvm needs /dev/kvm.",
)
@click.option("--steer", is_flag=True, help="Leave nothing to chance (vcpu-poll).")
@click.option("--rounds", type=click.IntRange(min=1), help="Try at most this often.")
@click.option("--timeout", type=DURATION, help="Try at most this long: 30s, 5m.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the trace: NAME.csv or NAME.parquet.",
)
@click.option(
    "--all", "everything", is_flag=True, help="Record every bottom half, not only the scenario's."
)
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@format_option
def scenario_command(
    scenario: str | None,
    list_only: bool,
    qemu: str,
    accel: Any,
    steer: bool,
    rounds: int | None,
    timeout: float | None,
    output: Path | None,
    everything: bool,
    force: bool,
    output_format: str,
) -> int:
    """Boot a small guest of our own on a stock QEMU and show one verdict end to end.

    Nothing is patched or replayed. Succeeds (0) when the scenario's verdict was shown, fails
    (1) when it was not.
    """
    if list_only:
        _print_list(output_format)
        return 0
    if scenario is None:
        raise click.UsageError("name a SCENARIO, or --list them")
    chosen = SCENARIOS[scenario]
    if steer and not chosen.steerable:
        raise click.UsageError(f"{scenario} leaves nothing to chance: --steer is for vcpu-poll")
    with (
        work_folder() as folder,
        Signals() as signals,
        Files(output, force, everything, folder) as files,
        _progress(chosen, rounds or chosen.rounds) as show,
    ):

        def progress(done: int) -> None:
            if signals.reason:
                sys.exit(128 + signal.Signals[signals.reason])
            show(done)

        def settle() -> Path:
            signals.no_loop()
            return files.settle()

        result = run_scenario(
            chosen,
            Setup(
                qemu=find_qemu(qemu),
                accel=accel,
                rounds=rounds or chosen.rounds,
                timeout_s=timeout or chosen.timeout_s,
                trace=files.growing,
                force=force,
                progress=progress,
                steer=steer,
                everything=everything,
            ),
            settle,
        )
    if output is None:
        from qtrace.cli.views.verdict_view import forget_paths

        forget_paths(result)
    if output_format == "json":
        print_json(result)
    else:
        _print_result(result)
    return 0 if result["shown"] else 1


command = Lab(
    epilog=EXAMPLES,
    help=scenario_command.help,
    options_metavar="",
    subcommand_metavar="SCENARIO [OPTIONS] | hunt ... | hazard ...",
)


@contextmanager
def _progress(scenario: Scenario, rounds: int) -> Iterator[Callable[[int], None]]:
    """A count on stderr, on a terminal only; the bar goes when the scenario ends."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(f"{scenario.name}: round", total=rounds)
        yield lambda done: bar.update(task, completed=done)


def _print_list(output_format: str) -> None:
    rows = [
        {"name": s.name, "expected": s.expected, "explanation": s.explanation}
        for s in SCENARIOS.values()
    ]
    if output_format == "json":
        print_json({"scenarios": rows})
        return
    for row in rows:
        stdout().print(f"{row['name']:<12} {row['explanation']}")


def _print_result(result: dict[str, Any]) -> None:
    from qtrace.cli.views.verdict_view import inert, print_report

    console = stdout()
    console.print(
        f"{result['scenario']} on QEMU {result['qemu_version']}, {result['accel']}: "
        f"{result['rounds']} snapshots in {result['seconds']:.1f} s"
    )
    print_report(console, result)
    for line in result["lines"]:
        console.print(inert(line))
    if not result["shown"]:
        stderr().print(
            f"the verdict {result['expected']} was not shown; more --rounds or --timeout may help"
        )
