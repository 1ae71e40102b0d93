"""The verdict alone, of recordings of any length: in memory that only what was watched takes.

An hour of `--all` is hundreds of millions of events, of which a verdict needs some thousand. The
file is streamed twice: for the names, then for their rows. What needs all events (statistics,
lints) is left out, and never answered from a part of them.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable

from qtrace.analysis.report import judge_opened
from qtrace.analysis.report_types import Report
from qtrace.analysis.selection import select_names
from qtrace.analysis.traces import Source, Traces, open_traces
from qtrace.errors import NoMatch


def judge_watched(source: Source, names: Iterable[str] = (), strict: bool = False) -> Report:
    """As ``judge``, of the bottom halves that the recordings watched, or of these, by whole names.

    ``statistics``, ``elsewhere`` and all lints but ``long-command`` are left out; a finding's
    ``instance`` is None: it would be another one's number in the whole recording.

    Raises:
        TraceUnreadable: see ``open_traces``.
        NoMatch: nothing was watched, a name is a pattern, or no recording has it.
    """
    asked = list(dict.fromkeys(names))
    if patterns := [name for name in asked if glob.has_magic(name)]:
        raise NoMatch(
            f"{patterns[0]!r} is a pattern: which names it fits is not known before all is read",
            "give whole names, or judge the whole recording",
        )
    # Every event that belongs to no bottom half: who was watched, and what was seen blocked.
    paths = [trace.path for trace in open_traces(source)]
    first = Traces(paths, only=())
    wanted = asked or select_names(first, [])
    if not wanted:
        raise NoMatch("these recordings watched no bottom half", "name some with -b NAME")
    traces = Traces(paths, only=wanted)
    if asked:
        known = {n for t in traces for n in [*t.watched, *map(str, t.instances["name"].unique())]}
        if unknown := [name for name in asked if name not in known]:
            raise NoMatch(f"no bottom half of these recordings is {unknown[0]!r}", "check the name")
    return judge_opened(traces, strict=strict, only=wanted)
