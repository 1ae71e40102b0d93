"""``qtrace replay``: a recording played back, on the screen that shows a QEMU that lives."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from qtrace.cli.options import DURATION
from qtrace.errors import ExitStatus

if TYPE_CHECKING:
    from qtrace.cli.player import Player
    from qtrace.export.moments import Moments

# Pictures in a second; and what is busiest is counted over as much as is played in one.
FRAME_S, WINDOW_S = 0.1, 1.0
WINDOW_NS = 1_000_000_000
EXAMPLES = """\b
Examples:
  qtrace replay trace.parquet                     space stops it, q ends it
  qtrace replay trace.parquet --speed 0.001       a millisecond in each second
  qtrace replay trace.parquet --finding 1         stopped at the worst finding
  qtrace replay trace.csv --at 12.5s | cat        that moment, as text"""


@click.command(epilog=EXAMPLES)
@click.argument("trace", metavar="TRACE")
@click.option(
    "--speed", type=click.FloatRange(1e-6, 1e3), default=1.0, show_default=True,
    help="Seconds of the recording in one second.",
)  # fmt: skip
@click.option("--at", "at_s", type=DURATION, metavar="TIME", help="Begin there: 12.5s, 300ms.")
@click.option(
    "--finding", type=click.IntRange(min=1), metavar="N",
    help="Begin at the Nth finding, the worst is the first, and stop there.",
)  # fmt: skip
def command(trace: str, speed: float, at_s: float | None, finding: int | None) -> int:
    """Play a recording back: which thread ran what, what was pending and for how long, commands,
    the busiest bottom halves, findings where they were.

    TRACE is a CSV or Parquet file of `qtrace attach -o`. Keys: space stops and goes on, n and p go
    to the next and the previous finding, arrows move, + and - change the speed, q ends. Without a
    terminal one moment is printed.
    """
    if at_s is not None and finding is not None:
        raise click.UsageError("begin at one place: --at or --finding")
    from qtrace.analysis import Trace
    from qtrace.analysis.report import judge_opened
    from qtrace.cli.output import stderr
    from qtrace.cli.player import Player
    from qtrace.cli.progress import converting
    from qtrace.cli.views.verdict_view import inert
    from qtrace.export.drawing import drawing_of
    from qtrace.export.groundwork import Groundwork
    from qtrace.export.moments import Moments

    one, ground = Trace(trace), Groundwork()
    with converting(trace) as progress:
        one.progress = progress
        drawn = drawing_of(one, judge_opened([one], lints=None, beside=[ground]), ground)
        moments = Moments(drawn)
    for text in one.view.warnings:
        stderr().print(inert(f"warning: {trace}: {text}"))
    if finding is not None and finding > len(drawn.findings):
        count = len(drawn.findings)
        raise click.UsageError(f"{trace} has {count or 'no'} finding{'' if count == 1 else 's'}")
    begins = [found.begin_ns for found in drawn.findings]
    player = Player(drawn.begin_ns, drawn.end_ns, begins, speed)
    if finding is not None:
        player.go_to(finding - 1)
    elif at_s is not None:
        player.now_ns = min(drawn.begin_ns + int(at_s * 1e9), drawn.end_ns)
    if sys.stdout.isatty() and sys.stdin.isatty():
        _play(moments, player)
    else:
        _print(moments, player.now_ns)
    return ExitStatus.OK


def _play(moments: Moments, player: Player) -> None:
    from qtrace.cli.keys import Keys
    from qtrace.cli.output import stdout
    from qtrace.cli.views.full_screen import FullScreen
    from qtrace.cli.views.replay_screen import screen_of

    drawn = moments.drawn
    with Keys() as keys, FullScreen(stdout()) as shown:
        at = time.monotonic()
        while not player.over:
            window = int(WINDOW_S * player.speed * 1e9)
            shown.show(screen_of(moments.at(player.now_ns, window), drawn, player))
            for key in keys.pressed(FRAME_S):
                player.key(key)
            before, at = at, time.monotonic()
            player.passed(at - before)


def _print(moments: Moments, time_ns: int) -> None:
    from qtrace.cli.output import stdout
    from qtrace.cli.views.replay_screen import screen_of
    from qtrace.cli.views.screen import lines

    console = stdout()
    for line in lines(screen_of(moments.at(time_ns, WINDOW_NS), moments.drawn), *PRINTED):
        console.print(line)


# Columns, and more lines than there are.
PRINTED = (100, 1000)
