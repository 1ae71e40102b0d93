"""The command line: one module per command, loaded when it is called.

Adding a command is one module with a click command named ``command``, and one line in
``COMMANDS`` (the module of ``gdb-script`` is ``gdb_script``).
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import traceback
from typing import Any

import click

from qtrace import __version__
from qtrace.cli.signals import BrokenOff
from qtrace.errors import ExitStatus, NoProc, QtraceError
from qtrace.host.unanswered import NoAnswer, watch_over_this_thread

# In the order of `qtrace --help`, each with how its own help begins.
COMMANDS = {
    "check": "Say whether a QEMU is healthy, or what is wrong with it",
    "autopsy": "Capture what is known of a QEMU, before it is killed",
    "ps": "List the QEMU processes here",
    "doctor": "Say what recording needs, what is missing",
    "scan": "List the one-shot bottom halves of a QEMU BINARY",
    "attach": "Record which threads run the watched bottom halves",
    "run": "Run COMMAND and record it from its very start",
    "analyze": "The verdict of recorded traces, on any machine",
    "explain": "What became of a bottom half and why, in prose",
    "diff": "What changed between recordings",
    "fleet": "Verdicts and findings of many recordings",
    "lints": "The lints: what else a recording can prove",
    "convert": "Turn SOURCE (CSV, Parquet, or the raw file of --all) into TARGET",
    "export": "A recording as a timeline for Perfetto",
    "report": "One HTML file to look at and to send",
    "replay": "Play a recording back",
    "inspect": "Show what is pending in each AioContext of a QEMU",
    "steer": "Force the next runs of a bottom half onto a vCPU thread",
    "reroute": "Schedule a bottom half into another AioContext",
    "lab": "Boot a small guest of our own on a stock QEMU",
    "monitor": "Watch every QEMU of this host, as metrics",
    "gdb-script": "Print the path of the commands for gdb",
    "completion": "Print the script that completes commands and options in SHELL",
}


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for: start-up stays short."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"qtrace.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """None of them is loaded for it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not (name.startswith("-") or name in COMMANDS or ctx.resilient_parsing):
            # click knows only commands that are loaded.
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{name}'.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click ends with status 1 for one that bears EPIPE, which means a finding here.
            raise BrokenPipeError from None


FIRST = """\
Which thread ran this bottom half of a live QEMU, and inside whose aio_poll()?

My VM is slow or hangs:        qtrace check --host (or --pid PID)
Which QEMUs are here:          qtrace ps
Does it have QEMU issue 2111:  qtrace attach --pid PID      Ctrl-C ends it
See the bug on a stock QEMU:   qtrace lab vcpu-poll
What is missing for all that:  qtrace doctor

qtrace --help lists every command, qtrace COMMAND --help explains one."""


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="qtrace")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Which thread ran this bottom half of a live QEMU, and inside whose aio_poll()?

    \b
    qtrace check --host                        what is wrong with the QEMUs here
    qtrace ps                                  find the QEMU processes here
    qtrace attach --pid 1234 -o trace.csv      record until Ctrl-C; the verdict
    qtrace analyze trace.csv                   the same verdict, on any machine

    \b
    Exit status: 0 no finding, 1 a finding, 2 usage, 3 environment or input,
    4 inconclusive.
    """
    ctx.obj = {"debug": debug}
    if ctx.invoked_subcommand is None:
        click.echo(FIRST, err=True)
        ctx.exit(ExitStatus.USAGE)


def main() -> None:
    """Entry point: every error becomes two lines and an exit status."""
    watch_over_this_thread(_give_up)
    try:
        result = cli.main(prog_name="qtrace", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitStatus.USAGE)
    except BrokenOff as error:
        sys.exit(128 + error.number)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # `| head` is silent: what is still buffered goes nowhere. The status is a shell's
        # for SIGPIPE; none of ours would be true.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except QtraceError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        _tell(error)
        sys.exit(error.exit_status)
    except OSError:
        if os.path.lexists("/proc/self"):
            raise
        _tell(NoProc("there is no /proc here"))
        sys.exit(NoProc.exit_status)
    sys.exit(result if isinstance(result, int) else ExitStatus.OK)


def _tell(error: QtraceError) -> None:
    click.echo(f"error: {error.message}", err=True)
    click.echo(f"remedy: {error.remedy}", err=True)


def _give_up(error: NoAnswer) -> None:
    """End at once, as by SIGKILL: nothing else wakes a thread that waits for the kernel."""
    _tell(error)
    os._exit(error.exit_status)
