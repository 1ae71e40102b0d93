"""The lints: one module each, loaded when it is first asked for, and how they are run.

Adding one is one module that defines ``LINT`` (``long-callback`` is ``long_callback``), and its
name here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qtrace.analysis.frames import Frames, Part, fold_all
from qtrace.analysis.lint import Answer, Fold, Lint, LintResult, Seen, Threshold
from qtrace.errors import BadThreshold, NoSuchLint

# Stands for every lint.
ALL = "all"

LINTS = (
    "wrong-thread",
    "nested-loop",
    "bql-dropped",
    "stranded",
    "stuck-wait",
    "long-command",
    "long-callback",
    "busy-loop",
    "storm",
    "lost-schedule",
    "vm-stop",
    "starvation",
    "late-reply",
    "guest-polls",
    "head-of-line",
    "exposure",
)


def find(name: str) -> Lint:
    """The lint of that name, which must be one of ``LINTS``."""
    lint: Lint = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").LINT
    return lint


class Linting:
    """Several lints on their way through one recording.

    A proven finding stands. Without one, lost events, an end that was cut off or rows that
    were never recorded leave it open: what is missing might have been one.
    """

    def __init__(
        self, trace: Frames, lints: Iterable[Lint], limits: Mapping[str, Threshold | None]
    ) -> None:
        self._trace, self._limits = trace, limits
        self._folds = [
            (lint, None if lint.needs == "--all" and not trace.every
             else lint.fold(trace, limits[lint.name] or Threshold(0, "")))
            for lint in lints
        ]  # fmt: skip

    def add(self, part: Part) -> None:
        """See ``Fold``."""
        for _lint, fold in self._folds:
            if fold is not None:
                fold.add(part)

    def end(self) -> list[LintResult]:
        """A result of each."""
        return [self._result(lint, fold) for lint, fold in self._folds]

    def _result(self, lint: Lint, fold: Fold | None) -> LintResult:
        seen = Seen(doubts=["it needs every bottom half: record with --all"])
        if fold is not None:
            seen = fold.end()
        trace, doubts = self._trace, list(seen.doubts)
        lost = trace.lost_events
        if not lint.qmp:
            lost -= int(trace.file.qmp_losses["count"].sum())
        if lost:
            doubts.append(f"events lost: {lost:,}")
        if not trace.complete:
            doubts.append("the recording was cut off")
        findings = sorted(seen.findings, key=lambda one: (one.level != "error", -one.value))
        result: Answer = "finding" if findings else "inconclusive" if doubts else "none"
        reason = "; ".join(doubts) if result == "inconclusive" else ""
        limit = self._limits[lint.name]
        path = str(trace.path)
        return LintResult(lint.name, path, result, reason, findings, limit, seen.facts)


def run_lints(
    traces: Iterable[Frames],
    names: Iterable[str] | None = None,
    thresholds: Mapping[str, float | str] | None = None,
) -> list[LintResult]:
    """Let lints look at recordings: a result for each lint and recording.

    Args:
        names: of the lints, or ``all``; all of them when None.
        thresholds: by the lint's name; text with its unit (``10ms``, ``100/s``), or a number in
            the default's unit.

    Raises:
        NoSuchLint: there is none of that name.
        BadThreshold: a text that is no such value, or a lint without a threshold.
    """
    chosen = choose(names)
    limits = limits_of(chosen, thresholds)
    found: list[LintResult] = []
    for trace in traces:
        linting = Linting(trace, chosen, limits)
        fold_all(trace, [linting])
        found += linting.end()
    return found


def limits_of(
    chosen: Iterable[Lint], thresholds: Mapping[str, float | str] | None
) -> dict[str, Threshold | None]:
    """The threshold of each, see ``run_lints``."""
    limits = {lint.name: lint.threshold for lint in chosen}
    for name, value in (thresholds or {}).items():
        if name == ALL:
            raise NoSuchLint(ALL, ())
        limits[name] = _threshold(choose([name])[0], value)
    return limits


def choose(names: Iterable[str] | None) -> list[Lint]:
    """The lints of these names, each once; all of them when None.

    Raises:
        NoSuchLint: there is none of that name.
    """
    if names is None:
        return [find(name) for name in LINTS]
    wanted = list(dict.fromkeys(names))
    if ALL in wanted:
        wanted = list(LINTS)
    if unknown := [name for name in wanted if name not in LINTS]:
        raise NoSuchLint(unknown[0], LINTS)
    return [find(name) for name in wanted]


def _threshold(lint: Lint, value: float | str) -> Threshold:
    if lint.threshold is None:
        raise BadThreshold(f"{lint.name} has no threshold", "qtrace lints shows which have one")
    if not isinstance(value, str):
        return replace(lint.threshold, value=float(value))
    try:
        return lint.threshold.parse(value)
    except ValueError:
        raise BadThreshold(
            f"{value!r} is no threshold for {lint.name}",
            f"write it like its default, {str(lint.threshold).replace(' ', '')}",
        ) from None
