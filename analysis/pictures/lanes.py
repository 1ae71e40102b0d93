"""Swim lanes: a lane for each thread, bottom halves as bars, an arrow from schedule to run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qtrace.analysis.pictures.style import (
    COLOURS,
    INK,
    OTHER,
    draw_lanes,
    plain,
    thread_lanes,
    unit,
)
from qtrace.analysis.stacks import stack_facts
from qtrace.analysis.traces import AnalysedTrace
from qtrace.analysis.verdicts import FINDINGS, SEVERITY

# More of them would hide what they point at.
MOST_ARROWS = 60
# The part of the axis that one letter of a name takes.
LETTER = 0.0105
# How much of a lane its bars fill.
HEIGHT = 0.66


def swim_lanes(trace: AnalysedTrace) -> Figure:
    """Above: each run of the recording as a dot on its thread. Below: the first finding that ran
    (or the first run), from its schedule to its end, as in ``window``."""
    runs = _runs(trace)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    if runs.empty:
        figure.suptitle("no bottom half ran in this recording")
        return figure
    above, below = figure.subplots(2, 1)
    _dots(above, runs)
    found = runs["verdict"].isin(FINDINGS).to_numpy()
    chosen = runs.iloc[int(found.argmax())]
    began = chosen["time_ns"] if chosen["scheduled_ns"] < 0 else chosen["scheduled_ns"]
    margin = max((max(chosen["end_ns"], chosen["time_ns"]) - began) // 5, 1_000)
    until = max(chosen["end_ns"], chosen["time_ns"]) + margin
    _window(below, runs, int(began - margin), int(until))
    below.set_title("the first finding" if found.any() else "the first run", loc="left")
    return figure


def window(trace: AnalysedTrace, since_ns: int, until_ns: int) -> Figure:
    """What ran between two times (CLOCK_MONOTONIC).

    Each run is a bar, one inside another is stacked on it; a run without a recorded end is a
    tick. A dark line below a bar: its stack shows an ``aio_poll()`` that ran it. A circle is a
    schedule; its arrow leads to the run.
    """
    runs = _runs(trace)
    inside = (runs["time_ns"] <= until_ns) & (runs[["time_ns", "end_ns"]].max(axis=1) >= since_ns)
    tids = 1 + runs.loc[inside, "tid"].nunique()
    figure = Figure(figsize=(9, 1.6 + 0.9 * tids), layout="constrained")
    _window(figure.subplots(), runs, since_ns, until_ns)
    return figure


def _runs(trace: AnalysedTrace) -> pd.DataFrame:
    """Those of ``trace.runs`` with an instance: its verdict, and who scheduled it."""
    runs = trace.runs[(trace.runs["instance"] >= 0).to_numpy()]
    own = trace.instances.take(runs["instance"].to_numpy())
    columns = ["verdict", "scheduled_by_tid", "scheduled_by_thread", "scheduled_by_role"]
    return runs.assign(**{column: own[column].array for column in columns})


def _lanes(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each thread that ran or scheduled something."""
    ran = runs[["tid", "thread", "role"]]
    by = ["scheduled_by_tid", "scheduled_by_thread", "scheduled_by_role"]
    scheduled = runs[by].set_axis(ran.columns, axis=1)
    return thread_lanes(pd.concat([part.astype(object) for part in (ran, scheduled)]))


def _dots(axes: Axes, runs: pd.DataFrame) -> None:
    lanes = _lanes(runs)
    start = int(runs["time_ns"].min())
    name, size = unit(int(runs["time_ns"].max()) - start)
    for verdict in reversed(SEVERITY):
        own = runs[(runs["verdict"] == verdict).to_numpy()]
        if len(own):
            finding = verdict in FINDINGS
            axes.scatter(
                (own["time_ns"] - start) / size,
                lanes.loc[own["tid"], "lane"],
                s=60 if finding else 16,
                marker="D" if finding else "o",
                color=COLOURS.get(verdict, OTHER),
                label=f"{verdict} ({len(own):,})",
                zorder=3,
            )
    draw_lanes(axes, list(lanes["text"]))
    axes.set_xlabel(f"{name} since the first run")
    axes.set_title("every run of the recording", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _window(axes: Axes, runs: pd.DataFrame, since: int, until: int) -> None:
    ended = runs[["time_ns", "end_ns"]].max(axis=1).to_numpy(np.int64)
    seen = runs[(runs["time_ns"] <= until).to_numpy() & (ended >= since)]
    lanes = _lanes(seen)
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
            axes.barh(bottom[own], width[own], -tall, begin[own], align="edge", color=colour,
                      edgecolor=colour, alpha=0.85, label=f"{verdict} ({own.sum():,})")  # fmt: skip
    polls = stack_facts(seen["stack"])["in_poll"].to_numpy(np.bool_)
    if polls.any():
        axes.hlines(bottom[polls], begin[polls], (begin + width)[polls], color=INK, lw=3,
                    label="in aio_poll()")  # fmt: skip
    _names(
        axes, seen["name"].astype(str).tolist(), begin, width, bottom - tall, (until - since) / size
    )
    if len(seen) <= MOST_ARROWS:
        _arrows(axes, seen, lanes, begin, bottom - tall / 2, since, size)
    draw_lanes(axes, list(lanes["text"]))
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
    span: float,
) -> None:
    """Name the bars in up to two lines, the longest first; what would cover others is left out."""
    taken: dict[float, list[tuple[float, float]]] = {}
    for at in np.argsort(-width, kind="stable")[:MOST_ARROWS]:
        left = max(begin[at], 0.0)
        right = left + len(names[at]) * LETTER * span
        for line in (top[at] - 0.03, top[at] - 0.16):
            others = taken.setdefault(round(float(line), 3), [])
            if all(right < begun or left > ended for begun, ended in others):
                others.append((left, right))
                axes.text(left, line, plain(names[at]), fontsize=7, va="bottom", clip_on=True)
                break


def _depth(runs: pd.DataFrame) -> npt.NDArray[np.int64]:
    """In how many others each run lies: of few runs, so that each may be held to each."""
    depth = np.zeros(len(runs), np.int64)
    began, ended = runs["time_ns"].to_numpy(np.int64), runs["end_ns"].to_numpy(np.int64)
    for tid in runs["tid"].unique():
        own = np.flatnonzero((runs["tid"] == tid).to_numpy())
        inner = np.flatnonzero((runs["outer"] >= 0).to_numpy()[own])
        mine = began[own[inner]]
        within = (began[own][None, :] < mine[:, None]) & (ended[own][None, :] > mine[:, None])
        depth[own[inner]] = within.sum(axis=1)
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
    known = (runs["scheduled_ns"] >= since).to_numpy() & runs["scheduled_by_tid"].notna().to_numpy()
    when = (runs["scheduled_ns"].to_numpy(np.int64)[known] - since) / size
    source = lanes.loc[runs["scheduled_by_tid"][known], "lane"].to_numpy()
    axes.scatter(when, source, s=30, facecolors="white", edgecolors=INK, zorder=4,
                 label="scheduled")  # fmt: skip
    for x, y, to_x, to_y in zip(when, source, begin[known], middle[known], strict=True):
        style = {"arrowstyle": "->", "color": INK, "lw": 1, "shrinkA": 3, "shrinkB": 0}
        axes.annotate("", xy=(to_x, to_y), xytext=(x, y), arrowprops=style, zorder=4)
