"""What only all of a recording tells of one of its instances, gathered part by part."""

from __future__ import annotations

import numpy as np

from qtrace.analysis.contexts import Runners
from qtrace.analysis.frames import Part
from qtrace.analysis.threads import Names


class Overview:
    """It is led past a recording.

    Attributes:
        begin_ns, end_ns: when the first and the last event were.
        instances: how many there are. names: of the bottom halves that have some.
        runners: who ran each context.
        unfinished: the runs that had not returned, by their rows: for how long at least
            (``Frames.unfinished``).
    """

    def __init__(self) -> None:
        self.begin_ns = self.end_ns = self.instances = 0
        self.names: set[str] = set()
        self.runners = Runners()
        self.unfinished: dict[int, int] = {}
        self._threads = Names()

    def add(self, part: Part) -> None:
        """What is the part's own."""
        events = part.events.iloc[part.first_event :]
        if not self.end_ns:
            self.begin_ns = int(events["time_ns"].iloc[0])
        self.end_ns = int(events["time_ns"].iloc[-1])
        own = np.flatnonzero(part.own)
        instances = part.instances.take(own)
        self.instances += len(own)
        self.names |= set(instances["name"].unique().tolist())
        self.runners.add(instances)
        self._threads.add(events, instances, part.number[own])
        if part.is_last:
            still = part.unfinished
            rows = part.runs["row"].to_numpy(np.int64)[still.index.to_numpy(np.int64)]
            self.unfinished = dict(zip(rows.tolist(), still.tolist(), strict=True))

    @property
    def threads(self) -> dict[int, tuple[str, str]]:
        """The name and the role of each thread, by its id."""
        return self._threads.found()
