"""A terminal's whole screen for as long as something is shown on it; then it is as before."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qtrace.cli.views.screen import Screen, lines

if TYPE_CHECKING:
    from rich.console import Console


class FullScreen:
    """Shows one ``Screen`` after the other; a context manager."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def show(self, screen: Screen) -> None:
        """In place of what is shown; as large as the terminal is now."""
        from rich.console import Group

        width, height = self._console.size
        self._live.update(Group(*lines(screen, width, height)), refresh=True)
