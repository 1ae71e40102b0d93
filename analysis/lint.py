"""What a lint is, and what it answers: what else a recording shows, each with its proof.

A lint is one file in ``analysis/lints`` that defines ``LINT``, and a line in ``LINTS`` there
(docs/lints.md). It answers ``finding``, ``none`` or ``inconclusive``: never a finding from
incomplete data, never ``none`` where it could not have seen one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import pandas as pd

from qtrace.analysis.frames import Frames, Part
from qtrace.units import TIMES, show

Unit = Literal["ns", "/s", ""]
Answer = Literal["finding", "none", "inconclusive"]
Level = Literal["error", "warning"]
Needs = Literal["", "--all"]

# A finding of many occurrences names the rows of as many, the worst first.
SHOWN = 5


@dataclass(frozen=True)
class Threshold:
    """A limit: nanoseconds (``ns``), events per second (``/s``), or a plain number."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        return show(self.value, self.unit)

    def parse(self, text: str) -> Threshold:
        """Another value of the same kind: ``10ms``, ``2s``, ``100/s``, ``1000``.

        Raises:
            ValueError: it is not one.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ns|us|ms|s|/s|)", text.strip().replace(",", ""))
        if match is None:
            raise ValueError(text)
        value, unit = float(match[1]), match[2]
        if self.unit == "ns":
            if unit not in TIMES:
                raise ValueError(text)
            return replace(self, value=value * TIMES[unit])
        if unit not in ("", self.unit):
            raise ValueError(text)
        return replace(self, value=value)


@dataclass(frozen=True)
class Finding:
    """What a lint found, once for each bottom half, context or thread that it is about.

    Attributes:
        lint: its name.
        trace: the recording.
        sentence: it, in one sentence.
        name: the bottom half, or the function.
        context: the AioContext.
        tid, thread, role: the thread that it happened on; 0 and empty when none did.
        time_ns: when, CLOCK_MONOTONIC; of the worst occurrence.
        value, unit: what is compared with the threshold; of the worst occurrence.
        rows: numbers (column ``row`` of ``events``) of the rows that prove it: of the worst
            ``SHOWN`` occurrences.
        count: of occurrences.
        level: ``error`` where QEMU is known to break.
        instance: index into ``instances`` of the worst occurrence, or None.
        facts: more, JSON-able.
    """

    lint: str
    trace: Frames = field(repr=False)
    sentence: str
    name: str = ""
    context: str = ""
    tid: int = 0
    thread: str = ""
    role: str = ""
    time_ns: int = 0
    value: float = 0
    unit: Unit = ""
    rows: tuple[int, ...] = ()
    count: int = 1
    level: Level = "warning"
    instance: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def evidence(self) -> pd.DataFrame:
        """The rows of ``events`` that prove it."""
        return self.trace.evidence(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; ``evidence`` has the file and the row numbers."""
        plain = {
            key: getattr(self, key)
            for key in ("sentence", "level", "name", "context", "tid", "thread", "role", "time_ns",
                        "value", "unit", "count", "instance", "facts")
        }  # fmt: skip
        return plain | {"evidence": {"trace": str(self.trace.path), "rows": list(self.rows)}}


@dataclass(frozen=True)
class LintResult:
    """What a lint says of one recording.

    Attributes:
        lint: its name.
        trace: the recording's path.
        result: ``finding``, ``none`` or ``inconclusive``.
        reason: why it is inconclusive; else empty.
        findings: the worst first.
        threshold: that it was judged by.
        facts: what it counted, JSON-able.
    """

    lint: str
    trace: str
    result: Answer
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    threshold: Threshold | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "lint": self.lint,
            "trace": self.trace,
            "result": self.result,
            "reason": self.reason,
            "threshold": None if self.threshold is None else str(self.threshold),
            "findings": [finding.as_dict() for finding in self.findings],
            "facts": self.facts,
        }


@dataclass(frozen=True)
class Seen:
    """What a check hands back.

    Attributes:
        findings: in any order; proven, whatever else is missing.
        doubts: why what it saw besides may be more; empty when it was all there.
        facts: see ``LintResult``.
    """

    findings: Sequence[Finding] = ()
    doubts: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Fold(Protocol):
    """A lint on its way through one recording, which may come part by part."""

    def add(self, part: Part) -> None:
        """Look at what is the part's own."""

    def end(self) -> Seen:
        """What all of it shows."""


@dataclass
class Once:
    """The fold of a lint that asks for nothing that comes by the million."""

    check: Callable[[Frames, Threshold], Seen]
    trace: Frames
    threshold: Threshold

    def add(self, _part: Part) -> None:
        """Nothing to see."""

    def end(self) -> Seen:
        """See ``Fold``."""
        return self.check(self.trace, self.threshold)


@dataclass(frozen=True)
class Lint:
    """One thing to look for.

    Attributes:
        name: as on the command line.
        sentence: what it finds.
        threshold: the default, None when there is nothing to choose.
        why: what the threshold means, and why that default.
        needs: ``--all`` where nothing can be said without the rows of every bottom half.
        evidence: which rows prove a finding.
        source: the QEMU commits and issues it comes from.
        fold: looks at one recording, by a threshold (one of zero where there is none). Of the
            recording it may ask for what comes seldom: the header, QMP, looks.
        qmp: rows of QMP and jobs that were lost leave it open.
    """

    name: str
    sentence: str
    threshold: Threshold | None
    why: str
    needs: Needs
    evidence: str
    source: str
    fold: Callable[[Frames, Threshold], Fold]
    qmp: bool = True
