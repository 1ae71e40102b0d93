"""Which bottom halves are judged: those that were watched, or those that patterns name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

import pandas as pd

from qtrace.analysis.instances import KINDS
from qtrace.errors import NoMatch
from qtrace.trace.reader import Trace


def names_of(traces: Sequence[Trace], patterns: Sequence[str]) -> list[str]:
    """The watched ones in their order (or, with none, all), or those that match a pattern.

    Raises:
        NoMatch: a pattern matches none.
    """
    watched = dict.fromkeys(item["name"] for trace in traces for item in trace.header["watched"])
    seen: dict[str, None] = {}
    for trace in traces:
        rows = trace.frame["event"].isin(KINDS)
        seen |= dict.fromkeys(trace.frame.loc[rows, "name"].drop_duplicates())
    if not patterns:
        blocked = pd.concat([t.frame.loc[t.frame["event"] == "blocked", "name"] for t in traces])
        return list(watched | dict.fromkeys(blocked.drop_duplicates()) or seen)
    known = list(watched | seen)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise NoMatch(
                f"no bottom half of these traces matches {pattern!r}",
                f"the nearest names are: {', '.join(near) or 'none, they hold no bottom half'}",
            )
        chosen |= dict.fromkeys(found)
    return [name for name in known if name in chosen]
