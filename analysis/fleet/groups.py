"""Which build, host or machine differs from all others, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtrace.analysis.fleet.rows import Row
from qtrace.analysis.fleet.worst import worst_first
from qtrace.analysis.rates import LIKELY, Count, bursts, chance, corrected, say
from qtrace.analysis.summary import Environment, Summary, merged
from qtrace.analysis.verdicts import FINDINGS, SEVERITY
from qtrace.errors import FleetFailed

# A group of recordings that do not tell.
UNKNOWN = "unknown"
# The words that a recording tells by itself.
WORDS = {"build": "build_id"} | {name: name for name in Environment._fields if name != "build_id"}
ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class By:
    """What makes a group: a word of the recording's environment, or a part of its URL."""

    word: str
    pattern: str = ""

    @classmethod
    def parse(cls, text: str) -> By:
        """``build``, ``host`` ..., or ``rack=/(r[0-9]+)/``: a word of one's own, and where the URL
        tells it (the first group of a regular expression, or all that it matches).

        Raises:
            ValueError: none of these, or no regular expression.
        """
        word, equals, pattern = text.partition("=")
        if not equals and word not in WORDS:
            raise ValueError(f"{text!r}: one of {', '.join(WORDS)}, or WORD=REGEX over the URL")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if equals and not pattern:
            raise ValueError(f"{text!r}: the part behind = is empty")
        return cls(word, pattern)

    def of(self, row: Row) -> str:
        """The group of a recording."""
        if self.pattern:
            match = re.search(self.pattern, row.url)
            return (match[1] if match.re.groups else match[0]) if match else UNKNOWN
        return str(getattr(row.environment, WORDS[self.word])) or UNKNOWN


@dataclass(frozen=True)
class Difference:
    """A finding in a group beside the same in all other recordings.

    Attributes:
        what: a verdict, or a lint.
        name: the bottom half; empty where recordings are counted.
        here, elsewhere: how many of how many had it.
        bursts: see ``rates.bursts``.
        chance: by chance alone, as if this were the only comparison.
        corrected: the same among all of them (Holm).
        sentence: it, in words.
    """

    what: str
    name: str
    here: tuple[int, int]
    elsewhere: tuple[int, int]
    bursts: float
    chance: float
    corrected: float
    sentence: str

    @property
    def differs(self) -> bool:
        return self.corrected < LIKELY

    @property
    def more(self) -> bool:
        """It is more frequent here."""
        return self.here[0] * self.elsewhere[1] > self.elsewhere[0] * self.here[1]


@dataclass(frozen=True)
class Group:
    """Recordings that have something in common.

    Attributes:
        name: what they have.
        rows: the worst first; duplicates are left out.
        unread: how many of them could not be read.
        summary: of all others.
        differences: what happened in any group, the surest first.
    """

    name: str
    rows: Sequence[Row]
    unread: int
    summary: Summary
    differences: Sequence[Difference]

    @property
    def verdict(self) -> str:
        """The worst; ``inconclusive`` where none could be read."""
        return self.summary.verdict if self.summary.recordings else "inconclusive"


def groups(rows: Iterable[Row], by: By) -> list[Group]:
    """The recordings, group by group: first those that differ for the worse, the surest first.

    Raises:
        FleetFailed: there is nothing to compare.
    """
    own: dict[str, list[Row]] = {}
    for row in rows:
        if not row.duplicate_of:
            own.setdefault(by.of(row), []).append(row)
    if not own:
        raise FleetFailed("the table is empty", "name recordings")
    names = sorted(own)
    summaries = [merged(r.summary for r in own[name] if r.summary is not None) for name in names]
    found = _differences(names, summaries)
    made = [
        Group(
            name,
            worst_first(own[name]),
            sum(row.summary is None for row in own[name]),
            summary,
            sorted(differences, key=lambda one: (one.corrected, one.chance, one.what, one.name)),
        )
        for name, summary, differences in zip(names, summaries, found, strict=True)
    ]
    return sorted(made, key=_worst)


def _worst(group: Group) -> tuple[float, int, str]:
    worse = [one.corrected for one in group.differences if one.differs and one.more]
    return min(worse, default=1.0), SEVERITY.index(group.verdict), group.name


def _differences(names: list[str], summaries: list[Summary]) -> list[list[Difference]]:
    """Each group beside all others, for whatever was found in any."""
    everything = merged(summaries)
    kinds = sorted(
        {(what.what, what.name) for what in everything.findings if what.what in FINDINGS}
        | {(what.what, "") for what in everything.findings if what.what not in FINDINGS}
    )
    pairs = []
    for what, name in kinds:
        count, of = _count(everything, what, name)
        # What is alike are the recordings of a group; of whole recordings nothing is known.
        each = bursts(one.series(name, what) for one in summaries) if name else 1.0
        for number, summary in enumerate(summaries):
            own_count, own_of = _count(summary, what, name)
            here, there = (
                Count(own_count, own_of, each),
                Count(count - own_count, of - own_of, each),
            )
            if here.of and there.of:
                pairs.append((number, what, name, here, there, chance(there, here)))
    sure = corrected([pair[-1] for pair in pairs])
    found: list[list[Difference]] = [[] for _ in names]
    for (number, what, name, here, there, alone), among in zip(pairs, sure, strict=True):
        sentence = say(there, here, (ELSEWHERE, "here"), among)
        found[number].append(
            Difference(
                what, name, (here.count, here.of), (there.count, there.of), here.bursts, alone,
                among, sentence,
            )
        )  # fmt: skip
    return found


def _count(summary: Summary, what: str, name: str) -> tuple[int, int]:
    """How many of how many: instances of a bottom half, or recordings in which that can be told."""
    if name:
        return sum(s.hits for s in summary.series(name, what)), summary.instances(name)
    if what == "stuck":
        return summary.verdicts.get("stuck", 0), summary.recordings
    answers = summary.lints.get(what, {})
    return answers.get("finding", 0), answers.get("finding", 0) + answers.get("none", 0)
