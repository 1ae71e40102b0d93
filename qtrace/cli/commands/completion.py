"""``qtrace completion``: what makes a shell complete commands and options."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

EXAMPLES = """\b
Examples:
  source <(qtrace completion bash)                         # in ~/.bashrc
  source <(qtrace completion zsh)                          # in ~/.zshrc
  qtrace completion fish > ~/.config/fish/completions/qtrace.fish"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: Any) -> int:
    """Print the script that completes commands and options in SHELL."""
    complete = get_completion_class(shell)
    assert complete is not None
    # The variable is the one that click looks for in a program of this name.
    click.echo(complete(ctx.find_root().command, {}, "qtrace", "_QTRACE_COMPLETE").source())
    return 0
