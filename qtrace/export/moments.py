"""What a recording shows of any one moment: who ran what, what was pending, what was busiest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from qtrace.analysis.arrays import code_of, filled
from qtrace.analysis.distribution import percentiles
from qtrace.analysis.frames import Frames
from qtrace.analysis.instances import UNSEEN
from qtrace.export.drawing import Drawing, FindingMark, Span
from qtrace.export.groundwork import Thread
from qtrace.export.windows import stacked

# A run inside so many others on one thread is found.
DEEPEST = 64
# Of a busy window, so many names are told.
BUSIEST = 40


@dataclass(frozen=True, slots=True)
class Running:
    """A thread at a moment: the innermost run that it is in, since when; else its latest one, and
    when that began."""

    thread: Thread
    name: str = ""
    poll: bool = False
    since_ns: int = -1
    over: bool = True


@dataclass(frozen=True, slots=True)
class Waiting:
    """A bottom half that is pending."""

    name: str
    context: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Busy:
    """A bottom half in a window of time: which part of all runs is its own, and nanoseconds of p50
    and p99; None where no pair is known."""

    name: str
    share: float
    wait: tuple[float, float] | None
    took: tuple[float, float] | None


@dataclass(frozen=True)
class Moment:
    """All of it.

    Attributes:
        time_ns: as in the recording.
        window_ns: over which ``busiest`` and ``rates`` (runs in it) are taken, up to the moment.
        contexts: each with how many bottom halves are pending, and its runs in the window.
        pending: those that wait longest first.
        spans: commands and jobs, what is known to wait, losses.
        findings: those whose stretch of time it lies in.
    """

    time_ns: int
    window_ns: int
    running: tuple[Running, ...]
    contexts: tuple[tuple[str, int, int], ...]
    pending: tuple[Waiting, ...]
    busiest: tuple[Busy, ...]
    spans: tuple[Span, ...]
    findings: tuple[FindingMark, ...]


class Moments:
    """The moments of one recording."""

    def __init__(self, trace: Frames, drawn: Drawing) -> None:
        self.drawn = drawn
        windows = list(drawn.windows())
        self._runs = runs = stacked([window.runs for window in windows])
        self._changes = [
            (np.concatenate([times for times, _count in own]),
             np.concatenate([count for _times, count in own]))
            for own in zip(*(window.pending for window in windows), strict=True)
        ]  # fmt: skip
        self._begin = runs["begin_ns"].to_numpy()
        still = runs["open"].to_numpy()
        self._end = np.where(still, drawn.end_ns + 1, runs["end_ns"].to_numpy())
        thread = runs["thread"].to_numpy()
        own = [np.flatnonzero(thread == place) for place in range(len(drawn.threads))]
        self._own = [(positions, self._begin[positions]) for positions in own]
        instances = trace.instances
        open_still = code_of(instances["end"], ("",)) == 0
        known = code_of(instances["end"], (UNSEEN,)) < 0
        begin, end = filled(instances["scheduled_ns"]), filled(instances["ended_ns"])
        end = np.where(open_still, drawn.end_ns + 1, end)
        # What took no time is not to be seen.
        at = np.flatnonzero(known & (begin >= 0) & (end > begin))
        at = at[np.argsort(begin[at], kind="stable")]
        self._scheduled, self._ended = begin[at], end[at]
        self._names = instances["name"].array.take(at)
        self._contexts = instances["context"].array.take(at)

    def at(self, time_ns: int, window_ns: int) -> Moment:
        """What it shows; the runs of ``window_ns`` before it are counted, too."""
        drawn = self.drawn
        window = slice(
            int(self._begin.searchsorted(time_ns - window_ns, side="right")),
            int(self._begin.searchsorted(time_ns, side="right")),
        )
        contexts = self._runs["context"].to_numpy()[window]
        ran = np.bincount(contexts[contexts >= 0], minlength=len(drawn.contexts))
        spans = [*drawn.commands, *drawn.jobs, *drawn.waits, *drawn.held, *drawn.losses]
        return Moment(
            time_ns,
            window_ns,
            tuple(self._running(time_ns)),
            tuple(
                (name, _value_at(*self._changes[place], time_ns), int(ran[place]))
                for place, name in enumerate(drawn.contexts)
            ),
            tuple(self._pending(time_ns)),
            tuple(_busiest(self._runs.iloc[window])),
            tuple(one for one in spans if _covers(one, time_ns)),
            tuple(one for one in drawn.findings if _covers(one, time_ns)),
        )

    def _running(self, time_ns: int) -> Iterator[Running]:
        for thread, (own, begins) in zip(self.drawn.threads, self._own, strict=True):
            last = int(begins.searchsorted(time_ns, side="right"))
            latest = own[max(last - DEEPEST, 0) : last]
            if not len(latest):
                yield Running(thread)
                continue
            # The innermost one began last.
            now = latest[self._end[latest] > time_ns]
            run = self._runs.iloc[int(now[-1] if len(now) else latest[-1])]
            yield Running(
                thread, str(run["name"]), bool(run["poll"]), int(run["begin_ns"]), not len(now)
            )

    def _pending(self, time_ns: int) -> Iterator[Waiting]:
        begun = int(self._scheduled.searchsorted(time_ns, side="right"))
        for place in np.flatnonzero(self._ended[:begun] > time_ns).tolist():
            name, context = str(self._names[place]), str(self._contexts[place])
            yield Waiting(name, context, int(self._scheduled[place]))


def _busiest(runs: pd.DataFrame) -> Iterator[Busy]:
    codes = runs["name"].array.codes
    names, counts = np.unique(codes, return_counts=True)
    wait = runs["wait_ns"].to_numpy(np.float64)
    end = runs["end_ns"].to_numpy(np.float64)
    took = end - runs["begin_ns"].to_numpy(np.float64)
    for place in np.argsort(-counts, kind="stable")[:BUSIEST].tolist():
        own = codes == names[place]
        name = str(runs["name"].cat.categories[names[place]]) if names[place] >= 0 else ""
        yield Busy(
            name,
            float(counts[place] / len(runs)),
            _pair(wait[own & (wait >= 0)]),
            _pair(took[own & (end >= 0)]),
        )


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    found = percentiles(values)
    return None if found is None else (found["p50_ns"], found["p99_ns"])


def _value_at(time: npt.NDArray[np.int64], count: npt.NDArray[np.int32], time_ns: int) -> int:
    place = int(time.searchsorted(time_ns, side="right"))
    return int(count[place - 1]) if place else 0


def _covers(one: Span | FindingMark, time_ns: int) -> bool:
    return one.begin_ns <= time_ns <= one.end_ns
