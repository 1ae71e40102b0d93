"""Files of a chain that are not there: what was in them is lost, and how much of what is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qtrace.event_kinds import BOTTOM_HALF, LOOKS, STEPS
from qtrace.trace.chain import ALL
from qtrace.trace.schema import escape

# Of rows that no verdict of a bottom half rests on.
OTHER = (*LOOKS, "qmp", "job", "lost", "exit")


@dataclass(frozen=True)
class Gap:
    """Files that follow each other, or rows that were cut out of one.

    Attributes:
        first, last: their numbers in the chain.
        since_ns, until_ns: nothing in them is older or younger.
        count: how many rows they held.
        rows: the same by ``chain.label``; None where that is not known.
    """

    first: int
    last: int
    since_ns: int
    until_ns: int
    count: int
    rows: Mapping[str, int] | None

    @classmethod
    def of(cls, until_ns: int, facts: Mapping[str, Any]) -> Gap | None:
        """From a ``lost`` row; None where it is about something else."""
        files, rows = facts.get("files"), facts.get("rows")
        if not isinstance(files, list) or [type(one) for one in files] != [int, int]:
            return None
        known = isinstance(rows, dict) and all(type(one) is int for one in rows.values())
        since_ns, count = facts.get("since_ns"), facts.get("count")
        if type(since_ns) is not int or type(count) is not int:
            return None
        return cls(files[0], files[1], since_ns, until_ns, count, rows if known else None)

    def number(self, is_meant: Callable[[str], bool]) -> int:
        """How many of its rows have such a label; all where that is not known."""
        if self.rows is None:
            return self.count
        return sum(count for label, count in self.rows.items() if is_meant(label))

    def of_bottom_half(self, name: str, watched: bool) -> int:
        """How many of them may be of a bottom half.

        Args:
            name: as in the trace.
            watched: it has probes of its own.
        """
        own = {f"{kind} {name}" for kind in BOTTOM_HALF if kind not in STEPS}
        return self.number(lambda label: escape(label) in own if watched else label == ALL)

    @property
    def looks(self) -> int:
        """How many of them looks had seen."""
        return self.number(LOOKS.__contains__)

    @property
    def sentence(self) -> str:
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        if self.first < self.last:
            return f"files {self.first:,} to {self.last:,} of the chain are missing: {rows}"
        if self.rows is None:
            return f"{rows} of file {self.first:,} of the chain are missing"
        return f"file {self.first:,} of the chain is missing: {rows}"


def losses_in(gaps: Sequence[Gap], kind: str) -> pd.DataFrame:
    """Their intervals, as losses of a kind.

    Args:
        kind: ``watched``, ``all`` (rows of `--all`), ``return`` or ``qmp``.
    """
    meant: dict[str, Callable[[str], bool]] = {
        "watched": lambda label: not label.startswith("return ") and label not in (*OTHER, ALL),
        "all": lambda label: label == ALL,
        "return": lambda label: label.startswith("return "),
        "qmp": lambda label: label in ("qmp", "job"),
    }
    found = [(gap, gap.number(meant[kind])) for gap in gaps]
    rows = [(gap.since_ns, gap.until_ns, count) for gap, count in found if count]
    losses = pd.DataFrame(rows, columns=["since_ns", "until_ns", "count"]).astype(np.int64)
    return losses.assign(every=np.full(len(losses), kind == "all"))
