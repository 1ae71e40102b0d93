"""What ``inspect --watch`` shows of each look: a line, a line of JSON, or the whole screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

import click

from qtrace.cli.output import SCHEMA_VERSION, stdout
from qtrace.cli.views.block_view import finding_json
from qtrace.cli.views.look_view import look_json, summary
from qtrace.cli.views.verdict_view import inert
from qtrace.inspection.looker import Looker
from qtrace.inspection.watch import Watched
from qtrace.qemu.aio.model import Look


class WatchView(Protocol):
    """A context manager.

    Attributes:
        details: it shows handlers and jobs, too.
    """

    details: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, seen: Watched) -> None:
        """One look, and what is known after it."""


class Lines:
    """A line each; a finding in full when it comes up."""

    details = False

    def __init__(self) -> None:
        self._told: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def show(self, seen: Watched) -> None:
        verdicts = _verdicts(seen)
        short = [k if (k, why) in self._told else f"{k}: {why}" for k, why in verdicts]
        self._told = verdicts
        click.echo(f"{time.strftime('%H:%M:%S')} {summary(seen.look, short)}")
        sys.stdout.flush()


class JsonLines:
    """A document each, in a line."""

    details = True

    def __init__(self, looker: Looker, ages_ns: Callable[[Look], dict[int, int]]) -> None:
        """``ages_ns``: how long bottom halves have been pending, where that is known."""
        self._looker, self._ages_ns = looker, ages_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def show(self, seen: Watched) -> None:
        document = look_json(seen.look, self._looker.name, self._ages_ns(seen.look))
        document["findings"] = [finding_json(finding) for finding in seen.findings]
        document["unclear"] = list(seen.reasons)
        print(json.dumps({"schema_version": SCHEMA_VERSION, **document}), flush=True)


class Whole:
    """The whole screen; when it ends, what was found is printed."""

    details = False

    def __init__(self, looker: Looker, ages_ns: Callable[[Look], dict[int, int]]) -> None:
        """``ages_ns``: as that of ``JsonLines``."""
        from qtrace.cli.views.full_screen import FullScreen
        from qtrace.cli.views.look_screen import LookScreen

        self._looker, self._ages_ns = looker, ages_ns
        self._tables = LookScreen()
        self._stack = ExitStack()
        self._screen = FullScreen(stdout())
        self._found: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self._screen)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()
        for kind, sentence in self._found.items():
            click.echo(inert(f"{kind}: {sentence}"))

    def show(self, seen: Watched) -> None:
        from qtrace.cli.views.look_screen import state_line
        from qtrace.cli.views.screen import Screen

        look, requests = seen.look, seen.requests
        self._found |= {finding.kind: finding.sentence for finding in seen.findings}
        target = self._looker.qemu.describe()
        head = (
            f"{target['program']} {target['version']}, pid {target['pid']},"
            f" {time.strftime('%H:%M:%S')}",
            state_line(look, requests),
        )
        tables = self._tables
        sections = (
            tables.threads(look),
            tables.pending(look, self._ages_ns(look)),
            *([tables.requests(requests)] if requests is not None else []),
            tables.contexts(look),
        )
        told = tuple(f"{kind}: {why}" for kind, why in _verdicts(seen))
        self._screen.show(Screen(head, sections, told, "Ctrl-C ends it"))


def _verdicts(seen: Watched) -> list[tuple[str, str]]:
    found = [(finding.kind, finding.sentence) for finding in seen.findings]
    reasons = ", ".join(seen.reasons)
    return [*found, *([("inconclusive", reasons)] if reasons else [])]
