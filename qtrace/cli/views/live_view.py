"""What a recording does, while it does it: a line, and of --all a table of the busiest."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from qtrace.trace.schema import escape
from qtrace.units import show

if TYPE_CHECKING:
    from rich.table import Table

    from qtrace.record.all_events.all_recorder import AllRecorder
    from qtrace.record.all_events.busiest import Busy
    from qtrace.record.recording import Recording

ROWS = 15


def load() -> None:
    """Load and render once what a view needs, before there are ring buffers that fill meanwhile."""
    if not sys.stderr.isatty():
        return
    import io

    import rich.live  # noqa: F401
    from rich.console import Console

    from qtrace.record.all_events.busiest import Busy

    busy = Busy(0, 1.0, (1.0, 1.0), (1.0, 1.0))
    Console(file=io.StringIO()).print(_table([("", busy)]))


class LiveView:
    """A line on a terminal's stderr, rewritten once a second; with ``table`` a table of --all.

    Without a terminal nothing is shown.
    """

    def __init__(self, recording: Recording, table: bool) -> None:
        self._recording = recording
        self._table = table
        self._stack = ExitStack()
        self._live: Any = None
        self._began = self._at = time.monotonic()
        self._produced = 0

    def __enter__(self) -> LiveView:
        if sys.stderr.isatty():
            from rich.live import Live

            from qtrace.cli.output import stderr

            self._live = self._stack.enter_context(
                Live(console=stderr(), transient=True, auto_refresh=False)
            )
            if self._recording.everything is not None:
                self._recording.everything.sampling = True
            else:
                self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def warn(self, sentence: str) -> None:
        """Say at once what was seen, above the line. Names in it come from the target."""
        text = f"warning: {escape(sentence)}"
        if self._live is None:
            click.echo(text, err=True)
        else:
            self._live.console.print(text)

    def update(self) -> None:
        """Show the state of now."""
        if self._live is None:
            return
        from rich.text import Text

        lasted = f"{time.monotonic() - self._began:.0f} s: "
        every = self._recording.everything
        if every is None:
            hits, pending = self._recording.hits, self._recording.pending
            line = Text(f"{lasted}{hits:,} hits, {pending:,} pending")
            self._live.update(line, refresh=True)
        else:
            self._update_all(every, lasted)

    def _update_all(self, every: AllRecorder, lasted: str) -> None:
        from rich.console import Group
        from rich.text import Text

        counts, now = every.counts, time.monotonic()
        rate = (counts.produced - self._produced) / (now - self._at)
        self._produced, self._at = counts.produced, now
        contexts, rows = every.busy_now()
        parts = [f"{rate:,.0f} events/s", f"{counts.produced:,} in all", f"{counts.lost:,} lost"]
        parts += [f"{name or 'unknown'} {share * rate:,.0f}/s" for name, share in contexts]
        if not every.armed:
            parts.append("(its probes are off)")
        line = Text(lasted + ", ".join(parts))
        shown = Group(line, _table(rows)) if self._table and rows else line
        self._live.update(shown, refresh=True)


def _table(rows: list[tuple[str, Busy]]) -> Table:
    """One line each, whatever the terminal's width: names give way first."""
    from rich.table import Table

    from qtrace.cli.views.verdict_view import inert

    table = Table(box=None, pad_edge=False, header_style="bold")
    # The one that may wrap is the one that rich makes narrower; a word is cut, not wrapped.
    table.add_column("bottom half", overflow="ellipsis", min_width=8)
    table.add_column("runs", justify="right", no_wrap=True, min_width=len("100.0 %"))
    for title in ("wait p50", "p99", "took p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True, min_width=len("9.99 us"))
    for name, busy in rows[:ROWS]:
        times = [*(busy.wait or (None, None)), *(busy.took or (None, None))]
        cells = ["" if value is None else show(value, "ns") for value in times]
        table.add_row(inert(name), f"{100 * busy.share:.1f} %", *cells)
    return table
