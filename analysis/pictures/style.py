"""What the pictures share: colours, the unit of a time axis, a lane for each thread."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by colour-blind readers too; findings differ in shape as well.
COLOURS = {
    "main-loop": "#0072b2",
    "iothread": "#009e73",
    "nested-poll": "#e69f00",
    "vcpu-poll": "#d55e00",
    "foreign-poll": "#cc79a7",
    "stranded": "#000000",
    "inconclusive": "#8c8c8c",
}
ROLE_COLOURS = {
    "main": "#0072b2",
    "vcpu": "#d55e00",
    "iothread": "#009e73",
    "migration": "#cc79a7",
    "worker": "#e69f00",
}
# For what is compared: before and after, or more than that.
SERIES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
OTHER = "#8c8c8c"
INK = "#333333"
# Of a figure, in inches.
WIDTH = 9
ROLES = ("main", "vcpu", "iothread", "migration", "worker", "other", "")


def unit(span_ns: float) -> tuple[str, float]:
    """The unit in which a time of that length reads best, and its nanoseconds."""
    for name, size in (("seconds", 1e9), ("milliseconds", 1e6)):
        if span_ns >= 2 * size:
            return name, size
    return "microseconds", 1e3


def plain(text: str) -> str:
    """A name of the target's as it is: mathematics in it would be typeset."""
    return text.replace("$", r"\$")


def thread_lanes(threads: pd.DataFrame) -> pd.DataFrame:
    """``lane`` and ``text`` for each thread (``tid``, ``thread``, ``role``), by tid, main first."""
    threads = threads.astype(object).dropna().drop_duplicates("tid")
    order = threads["role"].map({role: place for place, role in enumerate(ROLES)})
    threads = threads.assign(order=order).sort_values(["order", "tid"])
    text = threads["thread"] + "\n" + threads["role"] + " " + threads["tid"].astype(str)
    lanes = pd.DataFrame({"lane": range(len(threads)), "text": [plain(one) for one in text]})
    return lanes.set_index(threads["tid"].to_numpy())


def draw_lanes(axes: Axes, texts: Sequence[str], lanes: Sequence[float] | None = None) -> None:
    """Name the lanes, the first one at the top; they stand 1 apart unless it says where."""
    places = list(range(len(texts)) if lanes is None else lanes)
    axes.set_yticks(places, list(texts))
    axes.set_ylim(max(places, default=0) + 0.55, -0.7)
    axes.grid(axis="x", alpha=0.2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
