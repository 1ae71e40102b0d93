"""What a recording does, while it does it: a line, or of --all the whole screen."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from qtrace.errors import NoSuchProcess
from qtrace.trace.schema import escape

if TYPE_CHECKING:
    from qtrace.cli.views.screen import Screen
    from qtrace.record.all_events.all_recorder import AllRecorder
    from qtrace.record.recording import Recording


def load() -> None:
    """Load and render once what a view needs, before there are ring buffers that fill meanwhile."""
    if not sys.stderr.isatty():
        return
    import rich.live  # noqa: F401

    import qtrace.cli.views.full_screen
    import qtrace.cli.views.look_screen
    import qtrace.inspection.request_look  # noqa: F401
    from qtrace.cli.views.busy import BUSIEST, busy_row
    from qtrace.cli.views.screen import Screen, Section, lines
    from qtrace.record.all_events.busiest import Busy

    row = busy_row("", Busy(0, 1.0, (1.0, 1.0), (1.0, 1.0)))
    lines(Screen(("",), (Section(("", *BUSIEST), [row], len(BUSIEST)),)), 80, 24)


class LiveView:
    """A line on a terminal's stderr, rewritten once a second; with ``whole`` the whole screen.

    Without a terminal nothing is shown.
    """

    def __init__(self, recording: Recording, whole: bool) -> None:
        self._recording = recording
        self._whole = whole
        self._stack = ExitStack()
        self._live: Any = None
        self._screen: _RecordingScreen | None = None
        self._warned: list[str] = []
        self._began = self._at = time.monotonic()
        self._produced = 0

    def __enter__(self) -> LiveView:
        if not sys.stderr.isatty():
            return self
        from qtrace.cli.output import stderr

        if self._recording.everything is not None:
            self._recording.everything.sampling = True
        if self._whole:
            from qtrace.cli.views.full_screen import FullScreen

            self._screen = _RecordingScreen(self._recording)
            self._live = self._stack.enter_context(FullScreen(stderr()))
        else:
            from rich.live import Live

            self._live = self._stack.enter_context(
                Live(console=stderr(), transient=True, auto_refresh=False)
            )
            if self._recording.everything is None:
                self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for text in self._warned:
            click.echo(text, err=True)

    def warn(self, sentence: str) -> None:
        """Say at once what was seen, above the line. Names in it come from the target."""
        text = f"warning: {escape(sentence)}"
        if self._screen is not None:
            # Said again when the screen is as before.
            self._warned.append(text)
        elif self._live is None:
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
            text = Text(f"{lasted}{hits:,} hits, {pending:,} pending")
            self._live.update(text, refresh=True)
            return
        line, rate = self._counts(every)
        if self._screen is not None:
            self._live.show(self._screen.now(lasted + line, rate, self._warned))
        else:
            contexts, _rows = every.busy_now()
            parts = [
                line,
                *(f"{name or 'unknown'} {share * rate:,.0f}/s" for name, share in contexts),
            ]
            self._live.update(Text(lasted + ", ".join(parts)), refresh=True)

    def _counts(self, every: AllRecorder) -> tuple[str, float]:
        """How many events there are, in words, and in a second."""
        counts, now = every.counts, time.monotonic()
        rate = (counts.produced - self._produced) / (now - self._at)
        self._produced, self._at = counts.produced, now
        parts = [f"{rate:,.0f} events/s", f"{counts.produced:,} in all", f"{counts.lost:,} lost"]
        return ", ".join(parts if every.armed else [*parts, "(its probes are off)"]), rate


class _RecordingScreen:
    """The screens of a recording of every bottom half: what it counts, and a look at the target."""

    def __init__(self, recording: Recording) -> None:
        from qtrace.cli.views.look_screen import LookScreen
        from qtrace.inspection.looker import Looker
        from qtrace.inspection.request_look import Requests

        self._recording = recording
        self._looker = Looker(recording.qemu)
        self._requests = Requests(self._looker)
        self._tables = LookScreen()

    def now(self, line: str, rate: float, warned: list[str]) -> Screen:
        """The screen of now; ``line`` and ``rate`` are what was counted, and in a second."""
        from qtrace.cli.views.busy import BUSIEST, busy_row
        from qtrace.cli.views.look_screen import state_line
        from qtrace.cli.views.screen import Screen, Section

        every = self._recording.everything
        assert every is not None
        shares, rows = every.busy_now()
        rates = {name: share * rate for name, share in shares}
        busiest = Section(
            ("bottom half", *BUSIEST),
            [busy_row(name, busy) for name, busy in rows],
            len(BUSIEST),
        )
        head, sections = [line], [busiest]
        # One that ends is told by the recording.
        with suppress(NoSuchProcess):
            look = self._looker.look()
            requests = self._requests.look(look)
            head.append(state_line(look, requests))
            sections += [
                self._tables.contexts(look, rates),
                self._tables.threads(look),
                self._tables.pending(look),
                self._tables.requests(requests),
            ]
        return Screen(tuple(head), tuple(sections), tuple(warned[-1:]), "Ctrl-C ends the recording")
