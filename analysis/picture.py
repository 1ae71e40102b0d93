"""Instances as a picture: a lane for each thread, an arrow from each schedule to its run.

Needs matplotlib (the ``notebook`` extra); nothing else in the package does.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qtrace.analysis.verdicts import FINDINGS, SEVERITY

# Readable without telling red from green: findings differ in shape too.
COLOURS = {
    "main-loop": "#4c72b0",
    "iothread": "#8172b3",
    "nested-poll": "#ccb974",
    "vcpu-poll": "#c44e52",
    "foreign-poll": "#dd8452",
    "inconclusive": "#8c8c8c",
}
ROLES = ("main", "vcpu", "iothread", "migration", "worker", "other", "")


def swim_lanes(classified: pd.DataFrame, around: int = 3) -> Figure:
    """Draw what ``classify`` returned for one trace.

    Above: every run over the whole recording, on the thread that ran it. Below: the first
    finding (or the first run) with ``around`` neighbours on either side, in milliseconds,
    each schedule joined to its run. The figure is not shown and belongs to no backend.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1, 1])
    runs = classified[(classified["end"] == "run").to_numpy()].sort_values("ended_ns")
    lanes = _lanes(runs)
    if runs.empty:
        above.set_title("no bottom half ran in this recording")
        return figure
    start = int(runs["scheduled_ns"].fillna(runs["ended_ns"]).min())
    _dots(above, runs, lanes, (runs["ended_ns"] - start) / 1e9)
    above.set_xlabel("seconds")
    above.set_title("where each instance ran")
    above.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

    found = runs["verdict"].isin(FINDINGS).to_numpy()
    chosen = int(found.argmax())
    near = runs.iloc[max(0, chosen - around) : chosen + around + 1]
    origin = int(near["scheduled_ns"].fillna(near["ended_ns"]).min())
    ended = (near["ended_ns"] - origin) / 1e6
    _arrows(below, near, lanes, origin)
    _dots(below, near, lanes, ended)
    below.set_xlabel("milliseconds")
    what = "the first finding" if found.any() else "the first run"
    below.set_title(f"{what} and its neighbours: from the schedule (o) to the run")
    return figure


def _lanes(runs: pd.DataFrame) -> pd.DataFrame:
    """A lane for each thread that ran or scheduled something, indexed by tid, main first."""
    ran = runs[["tid", "thread", "role"]]
    by = ["scheduled_by_tid", "scheduled_by_thread", "scheduled_by_role"]
    scheduled = runs[by].set_axis(ran.columns, axis=1)
    threads = pd.concat([part.astype(object) for part in (ran, scheduled)]).dropna()
    threads = threads.drop_duplicates("tid")
    order = threads["role"].map({role: place for place, role in enumerate(ROLES)})
    threads = threads.assign(order=order).sort_values(["order", "tid"])
    text = threads["thread"] + "\n" + threads["role"] + " " + threads["tid"].astype(str)
    # Mathematics in a thread's name would be typeset.
    text = text.str.replace("$", r"\$", regex=False)
    lanes = pd.DataFrame({"lane": range(len(threads)), "text": text.to_numpy()})
    return lanes.set_index(threads["tid"].to_numpy())


def _dots(axes: Axes, runs: pd.DataFrame, lanes: pd.DataFrame, when: pd.Series) -> None:
    for verdict in reversed(SEVERITY):
        own = (runs["verdict"] == verdict).to_numpy()
        if own.any():
            finding = verdict in FINDINGS
            axes.scatter(
                when[own].astype(float),
                lanes.loc[runs.loc[own, "tid"], "lane"],
                s=70 if finding else 16,
                marker="D" if finding else "o",
                color=COLOURS.get(verdict, "#8c8c8c"),
                label=f"{verdict} ({own.sum()})",
                zorder=3,
            )
    axes.set_yticks(lanes["lane"], lanes["text"])
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _arrows(axes: Axes, near: pd.DataFrame, lanes: pd.DataFrame, origin: int) -> None:
    known = near[near["scheduled_ns"].notna()]
    begin = ((known["scheduled_ns"] - origin) / 1e6).astype(float)
    end = ((known["ended_ns"] - origin) / 1e6).astype(float)
    low = lanes.loc[known["scheduled_by_tid"], "lane"]
    high = lanes.loc[known["tid"], "lane"]
    axes.scatter(begin, low, s=40, facecolors="none", edgecolors="#333333", zorder=3)
    for x, y, to_x, to_y, verdict in zip(begin, low, end, high, known["verdict"], strict=True):
        style = {
            "arrowstyle": "->",
            "color": COLOURS.get(verdict, "#8c8c8c"),
            "lw": 1.5,
            "connectionstyle": "arc3,rad=-0.3" if y == to_y else "arc3",
        }
        axes.annotate("", xy=(to_x, to_y), xytext=(x, y), arrowprops=style)
