"""Swim lanes: a lane for each thread, bottom halves as bars, an arrow from schedule to run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.pictures.style import (
    COLOURS,
    INK,
    OTHER,
    WIDTH,
    draw_lanes,
    plain,
    thread_lanes,
    unit,
)
from qtrace.analysis.stacks import functions, stack_facts
from qtrace.analysis.verdicts import SEVERITY

# More of them would hide what they point at.
MOST_ARROWS = 60
# Dots that can be told apart on one lane.
PLACES = 4000
# So many findings stand too close for an edge of their own.
CROWD = 50
# How often a name stands on one lane.
MOST_ALIKE = 3
# The room of a lane without bars.
NARROW = 0.5
# The part of the axis that one letter of a name takes.
LETTER = 0.0105
# How much of a lane its bars fill.
HEIGHT = 0.66


def swim_lanes(trace: Frames) -> Figure:
    """Above: each run of the recording as a dot on its thread, a finding as a diamond. Below: the
    first finding that ran (or the first run), from its schedule to its end, as in ``window``."""
    runs = _known(trace, trace.runs)
    if runs.empty:
        figure = Figure(figsize=(WIDTH, 1))
        figure.suptitle("no bottom half ran in this recording")
        return figure
    chosen = runs.iloc[int(runs["finding"].to_numpy().argmax())]
    began = chosen["time_ns"] if chosen["scheduled_ns"] < 0 else chosen["scheduled_ns"]
    margin = max((max(chosen["end_ns"], chosen["time_ns"]) - began) // 5, 1_000)
    since, until = began - margin, max(chosen["end_ns"], chosen["time_ns"]) + margin
    near = _overlapping(runs, int(since), int(until))
    inches = [0.5 * runs["tid"].nunique() + 0.9, _inches(near, int(since))]
    figure = Figure(figsize=(WIDTH, sum(inches)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=inches)
    _dots(above, runs)
    _window(below, near, int(since), int(until))
    what = "finding" if chosen["finding"] else "run"
    below.set_title(f"the first {what}: {plain(str(chosen['name']))}", loc="left")
    return figure


def window(trace: Frames, since_ns: int, until_ns: int) -> Figure:
    """What ran between two times (CLOCK_MONOTONIC).

    Each run is a bar, one inside another is stacked on it; a run without a recorded end is a
    tick. A dark line below a bar: its stack shows an ``aio_poll()`` that ran it. A circle is a
    schedule; its arrow leads to the run.
    """
    seen = _known(trace, _overlapping(trace.runs, since_ns, until_ns))
    figure = Figure(figsize=(WIDTH, _inches(seen, since_ns)), layout="constrained")
    _window(figure.subplots(), seen, since_ns, until_ns)
    return figure


def _known(trace: Frames, runs: pd.DataFrame) -> pd.DataFrame:
    """Those of these runs with an instance: its verdict, whether that is a finding of a watched
    bottom half, and who scheduled it; a time that is not known is -1."""
    runs = runs[runs["instance"].notna().to_numpy()]
    runs = runs.assign(**{name: filled(runs[name]) for name in ("end_ns", "scheduled_ns")})
    own = trace.instances.take(filled(runs["instance"]))
    columns = ["verdict", "scheduled_by_tid", "scheduled_by_thread", "scheduled_by_role"]
    found = {column: own[column].array for column in columns}
    finding = runs["instance"].isin(trace.findings["instance"])
    return runs.assign(finding=finding, **found)


def _overlapping(runs: pd.DataFrame, since: int, until: int) -> pd.DataFrame:
    ended = np.maximum(runs["time_ns"].to_numpy(np.int64), filled(runs["end_ns"]))
    near: pd.DataFrame = runs[(runs["time_ns"] <= until).to_numpy() & (ended >= since)]
    return near


def _lanes(runs: pd.DataFrame, since: int) -> pd.DataFrame:
    """Of each thread that ran something, or from which an arrow comes."""
    ran = runs[["tid", "thread", "role"]]
    by = ["scheduled_by_tid", "scheduled_by_thread", "scheduled_by_role"]
    scheduled = runs.loc[_arrowed(runs, since), by].set_axis(ran.columns, axis=1)
    lanes = thread_lanes(pd.concat([part.astype(object) for part in (ran, scheduled)]))
    # One that only schedules needs no room for names.
    room = np.where(lanes.index.isin(runs["tid"]), 1.0, NARROW)
    return lanes.assign(lane=np.cumsum((room + np.roll(room, 1)) / 2) - (room[:1] + room[-1:]) / 2)


def _inches(runs: pd.DataFrame, since: int) -> float:
    """The height of a window."""
    return 1.8 + 0.9 * float(_lanes(runs, since)["lane"].max() if len(runs) else 0)


def _arrowed(runs: pd.DataFrame, since: int) -> npt.NDArray[np.bool_]:
    """The runs whose schedule is in the picture."""
    known = (runs["scheduled_ns"] >= since).to_numpy() & runs["scheduled_by_tid"].notna().to_numpy()
    return np.asarray(known & (len(runs) <= MOST_ARROWS), np.bool_)


def _dots(axes: Axes, runs: pd.DataFrame) -> None:
    lanes = thread_lanes(runs[["tid", "thread", "role"]])
    start = int(runs["time_ns"].min())
    span = int(runs["time_ns"].max()) - start
    name, size = unit(span)
    for verdict in reversed(SEVERITY):
        same = (runs["verdict"] == verdict).to_numpy()
        for finding in (False, True):
            own = runs[same & (runs["finding"] == finding).to_numpy()]
            if len(own):
                # Of millions as many as there is room for.
                place = own["time_ns"].to_numpy(np.int64) - start
                lane = lanes.loc[own["tid"], "lane"].to_numpy()
                cells = lane * (PLACES + 1) + place * PLACES // max(span, 1)
                _, shown = np.unique(cells, return_index=True)
                axes.scatter(
                    place[shown] / size,
                    lane[shown],
                    s=60 if finding else 16,
                    marker="D" if finding else "o",
                    color=COLOURS.get(verdict, OTHER),
                    edgecolors=INK if finding and len(own) < CROWD else "none",
                    label=f"{'finding: ' if finding else ''}{verdict} ({len(own):,})",
                    zorder=4 if finding else 3,
                )
    draw_lanes(axes, lanes["text"].tolist(), lanes["lane"].tolist())
    axes.set_xlabel(f"{name} since the first run")
    axes.set_title("every run of the recording", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _window(axes: Axes, seen: pd.DataFrame, since: int, until: int) -> None:
    lanes = _lanes(seen, since)
    name, size = unit(until - since)
    begin = (seen["time_ns"].to_numpy(np.int64) - since) / size
    width = np.maximum((seen["end_ns"].to_numpy(np.int64) - since) / size - begin, 0)
    depth = _depth(seen)
    lane = lanes.loc[seen["tid"], "lane"].to_numpy()
    tall = HEIGHT / (depth.max(initial=0) + 1)
    bottom = lane + HEIGHT / 2 - depth * tall
    for verdict in reversed(SEVERITY):
        own = (seen["verdict"] == verdict).to_numpy()
        if own.any():
            colour = COLOURS.get(verdict, OTHER)
            left, right = begin[own], begin[own] + width[own]
            low, high = bottom[own], bottom[own] - tall
            corners = [(left, low), (right, low), (right, high), (left, high)]
            bars = np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)
            label = f"{verdict} ({own.sum():,})"
            # Thousands of them at once; each as a patch of its own would take minutes.
            axes.add_collection(
                PolyCollection(
                    list(bars), facecolor=colour, edgecolor=colour, lw=0.6, alpha=0.85, label=label
                )
            )
    facts = stack_facts(seen["stack"])
    polls = facts["in_poll"].to_numpy(np.bool_)
    if polls.any():
        axes.hlines(bottom[polls], begin[polls], (begin + width)[polls], color=INK, lw=3,
                    label="in aio_poll()")  # fmt: skip
    _names(
        axes, seen["name"].astype(str).tolist(), begin, width, bottom - tall, lane - HEIGHT / 2,
        (until - since) / size,
    )  # fmt: skip
    if tall == HEIGHT:
        _accesses(axes, seen["stack"], facts, begin, width, bottom, (until - since) / size)
    if _arrowed(seen, since).any():
        _arrows(axes, seen, lanes, begin, bottom - tall / 2, since, size)
    draw_lanes(axes, lanes["text"].tolist(), lanes["lane"].tolist())
    axes.set_xlim(0, (until - since) / size)
    axes.set_xlabel(name)
    if len(seen):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _names(
    axes: Axes,
    names: list[str],
    begin: npt.NDArray[np.float64],
    width: npt.NDArray[np.float64],
    top: npt.NDArray[np.float64],
    above: npt.NDArray[np.float64],
    span: float,
) -> None:
    """Name the bars, inside where there is room, else above in up to two lines, the longest first;
    what would cover others is left out, and what repeats what is there already."""
    taken: dict[float, list[tuple[float, float]]] = {}
    named: Counter[tuple[str, float]] = Counter()
    for at in np.argsort(-width, kind="stable")[:MOST_ARROWS]:
        letters = len(names[at]) * LETTER * span
        seen_from, seen_until = max(begin[at], 0.0), min(begin[at] + width[at], span)
        if letters < seen_until - seen_from:
            axes.text(seen_from + LETTER * span / 2, top[at] + 0.02, plain(names[at]), fontsize=7,
                      va="top", color="white", clip_on=True)  # fmt: skip
            continue
        left = min(seen_from, span - letters)
        key = (names[at], above[at])
        for line in (above[at] - 0.03, above[at] - 0.16):
            others = taken.setdefault(round(float(line), 3), [])
            if named[key] < MOST_ALIKE and all(
                left + letters < begun or left > ended for begun, ended in others
            ):
                named[key] += 1
                others.append((left, left + letters))
                axes.text(left, line, plain(names[at]), fontsize=7, va="bottom", clip_on=True)
                break


def _accesses(
    axes: Axes,
    stacks: pd.Series,
    facts: pd.DataFrame,
    begin: npt.NDArray[np.float64],
    width: npt.NDArray[np.float64],
    bottom: npt.NDArray[np.float64],
    span: float,
) -> None:
    """Beside the line of a poll, where there is room: which access of the guest it was for."""
    device, poll = facts["device_frame"].to_numpy(), facts["deciding_frame"].to_numpy()
    for at in np.flatnonzero((device >= 0) & facts["in_poll"].to_numpy(np.bool_))[:MOST_ARROWS]:
        chain = functions(str(stacks.iloc[at]))
        text = f"in {chain[poll[at]]}() for {chain[device[at]]}()"
        seen_from, seen_until = max(begin[at], 0.0), min(begin[at] + width[at], span)
        if len(text) * LETTER * span < seen_until - seen_from:
            axes.text(seen_from + LETTER * span / 2, bottom[at] - 0.05, plain(text), fontsize=7,
                      va="bottom", color="white", clip_on=True)  # fmt: skip


def _depth(runs: pd.DataFrame) -> npt.NDArray[np.int64]:
    """In how many others of its thread each run lies: begun before, and not ended yet."""
    depth = np.zeros(len(runs), np.int64)
    began = runs["time_ns"].to_numpy(np.int64)
    ended = np.maximum(runs["end_ns"].to_numpy(np.int64), began)
    for tid in runs["tid"].unique():
        own = np.flatnonzero((runs["tid"] == tid).to_numpy())
        mine = began[own]
        before = np.searchsorted(np.sort(mine), mine, side="left")
        over = np.searchsorted(np.sort(ended[own]), mine, side="right")
        depth[own] = np.maximum(before - over, 0)
    return depth


def _arrows(
    axes: Axes,
    runs: pd.DataFrame,
    lanes: pd.DataFrame,
    begin: npt.NDArray[np.float64],
    middle: npt.NDArray[np.float64],
    since: int,
    size: float,
) -> None:
    known = _arrowed(runs, since)
    when = (runs["scheduled_ns"].to_numpy(np.int64)[known] - since) / size
    source = lanes.loc[runs["scheduled_by_tid"][known], "lane"].to_numpy()
    axes.scatter(when, source, s=30, facecolors="white", edgecolors=INK, zorder=4,
                 label="scheduled")  # fmt: skip
    for x, y, to_x, to_y in zip(when, source, begin[known], middle[known], strict=True):
        style = {"arrowstyle": "->", "color": INK, "lw": 1, "shrinkA": 3, "shrinkB": 0}
        axes.annotate("", xy=(to_x, to_y), xytext=(x, y), arrowprops=style, zorder=4)
