"""What recordings hold in a few kilobytes each: counts that are merged exactly, in any order.

``summarise`` makes the summary of one recording (analysis/summarise.py); ``+`` and ``merged`` those
of many. All of it is integers and texts: whoever merged it, and in which order, the bytes of
``as_json`` are the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from qtrace.analysis.distribution import Distribution
from qtrace.analysis.rates import Series
from qtrace.analysis.verdicts import SEVERITY

Key = TypeVar("Key")


class Environment(NamedTuple):
    """What was recorded, and by what; empty where a recording does not tell."""

    program: str = ""
    version: str = ""
    build_id: str = ""
    host: str = ""
    machine: str = ""
    recorder: str = ""


class Counted(NamedTuple):
    """The instances of a bottom half in one recording: how many, and which had which verdict."""

    of: int
    verdicts: tuple[tuple[str, Series], ...] = ()

    def series(self, verdict: str) -> Series:
        """Those with a verdict; of none when there is none."""
        return dict(self.verdicts).get(verdict, Series(self.of))


class About(NamedTuple):
    """What makes two findings the same: ``what`` is a verdict or a lint's name."""

    what: str
    name: str
    context: str
    role: str


class Time(NamedTuple):
    """Of which times a distribution is: ``wait`` (schedule to run) or ``duration`` (of the run)."""

    what: str
    name: str
    context: str


@dataclass(frozen=True)
class Found:
    """A finding: how often, in how many recordings, and where it is seen best.

    Attributes:
        value: of the best example, in what its lint compares; 0 of a verdict.
        trace, rows: the example's recording, and the rows of it that prove it.
    """

    count: int
    recordings: int
    level: str
    value: float
    sentence: str
    trace: str
    rows: tuple[int, ...]

    def __add__(self, other: Found) -> Found:
        # Of equal ones always the same, whichever comes first.
        best = max(self, other, key=lambda one: (one.value, one.trace, one.rows, one.sentence))
        return Found(
            self.count + other.count,
            self.recordings + other.recordings,
            min(self.level, other.level),
            best.value,
            best.sentence,
            best.trace,
            best.rows,
        )


@dataclass(frozen=True)
class Summary:
    """Of any number of recordings; ``Summary()`` is of none.

    Attributes:
        recordings: how many.
        events, lost_events: of all of them.
        observed_ns: from the first to the last row, of all of them together.
        incomplete: how many were cut off.
        verdicts: how many recordings had which.
        environments: how many recordings were made where.
        bottom_halves: of each that was judged its instances, recording by recording.
        lints: of each lint, in how many recordings it answered what.
        findings: of verdicts and lints.
        times: of what is certain.
    """

    recordings: int = 0
    events: int = 0
    lost_events: int = 0
    observed_ns: int = 0
    incomplete: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    environments: Mapping[Environment, int] = field(default_factory=dict)
    bottom_halves: Mapping[str, tuple[Counted, ...]] = field(default_factory=dict)
    lints: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    findings: Mapping[About, Found] = field(default_factory=dict)
    times: Mapping[Time, Distribution] = field(default_factory=dict)

    def __add__(self, other: Summary) -> Summary:
        """Of the recordings of both: associative and commutative, ``Summary()`` is neutral."""
        return Summary(
            self.recordings + other.recordings,
            self.events + other.events,
            self.lost_events + other.lost_events,
            self.observed_ns + other.observed_ns,
            self.incomplete + other.incomplete,
            _counts(self.verdicts, other.verdicts),
            _counts(self.environments, other.environments),
            _together(
                self.bottom_halves, other.bottom_halves, lambda one, two: tuple(sorted(one + two))
            ),
            _together(self.lints, other.lints, _counts),
            _together(self.findings, other.findings, lambda one, two: one + two),
            _together(self.times, other.times, lambda one, two: one + two),
        )

    @property
    def verdict(self) -> str:
        """The worst of its recordings; ``not-seen`` of none."""
        return min(self.verdicts, key=SEVERITY.index, default="not-seen")

    def instances(self, name: str) -> int:
        """How many of a bottom half there were."""
        return sum(one.of for one in self.bottom_halves.get(name, ()))

    def series(self, name: str, verdict: str) -> list[Series]:
        """Of each recording with that bottom half, which had the verdict."""
        return [one.series(verdict) for one in self.bottom_halves.get(name, ())]

    def as_json(self) -> str:
        """One line; ``from_json`` reads it. The same summary is the same text."""
        return json.dumps(
            {
                **{key: getattr(self, key) for key in PLAIN},
                "verdicts": dict(sorted(self.verdicts.items())),
                "environments": [[list(k), n] for k, n in sorted(self.environments.items())],
                "bottom_halves": {
                    name: [[one.of, {v: list(s) for v, s in one.verdicts}] for one in own]
                    for name, own in sorted(self.bottom_halves.items())
                },
                "lints": {k: dict(sorted(own.items())) for k, own in sorted(self.lints.items())},
                "findings": [
                    {**key._asdict(), **vars(one)} for key, one in sorted(self.findings.items())
                ],
                "times": [
                    [*key, one.smallest_ns, one.largest_ns, sorted(one.counts.items())]
                    for key, one in sorted(self.times.items())
                ],
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """What ``as_json`` wrote.

        Raises:
            ValueError, KeyError, TypeError: something else.
        """
        found: dict[str, Any] = json.loads(text)
        return cls(
            **{key: found[key] for key in PLAIN},
            verdicts=found["verdicts"],
            environments={Environment(*key): count for key, count in found["environments"]},
            bottom_halves={
                name: tuple(
                    Counted(of, tuple((v, Series(*s)) for v, s in verdicts.items()))
                    for of, verdicts in own
                )
                for name, own in found["bottom_halves"].items()
            },
            lints=found["lints"],
            findings={
                About(*(one.pop(key) for key in About._fields)): Found(
                    **{**one, "rows": tuple(one["rows"])}
                )
                for one in found["findings"]
            },
            times={
                Time(what, name, context): Distribution(dict(map(tuple, counts)), low, high)
                for what, name, context, low, high, counts in found["times"]
            },
        )


PLAIN = ("recordings", "events", "lost_events", "observed_ns", "incomplete")


def merged(summaries: Iterable[Summary]) -> Summary:
    """Of all of them: pair by pair, so that nothing is copied more often than it must be."""
    left = list(summaries)
    while len(left) > 1:
        pairs = [one + two for one, two in zip(left[::2], left[1::2], strict=False)]
        left = pairs + (left[-1:] if len(left) % 2 else [])
    return left[0] if left else Summary()


def _counts(one: Mapping[Key, int], other: Mapping[Key, int]) -> dict[Key, int]:
    return dict(Counter(one) + Counter(other))


def _together(one: Mapping[Key, Any], other: Mapping[Key, Any], add: Any) -> dict[Key, Any]:
    """What only one has as it is; what both have, added."""
    found = dict(one)
    for key, value in other.items():
        found[key] = add(found[key], value) if key in found else value
    return found
