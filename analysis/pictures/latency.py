"""How long bottom halves waited and ran: which share of them took at most so long."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from qtrace.analysis.frames import Frames, own_times
from qtrace.analysis.pictures.style import INK, OTHER, ROLE_COLOURS, SERIES, WIDTH, plain
from qtrace.units import show

POINTS = 4000
MARKS = {"p50": 0.50, "p99": 0.99}
Curves = dict[str, npt.NDArray[np.int64]]


def by_role(trace: Frames, name: str | None = None) -> Figure:
    """A curve for each kind of thread that ran bottom halves.

    Args:
        name: only this one; None for all of the recording.
    """
    sides = {}
    for what, found in own_times(trace):
        own = _of(found, name)
        roles = own["role"].astype(object).replace("", "unknown")
        sides[what] = {str(role): own["ns"].to_numpy()[(roles == role).to_numpy()]
                       for role in roles.unique()}  # fmt: skip
    colours = {role: ROLE_COLOURS.get(role, OTHER) for curves in sides.values() for role in curves}
    return _figure(sides, colours, name or "every bottom half")


def side_by_side(traces: Mapping[str, Frames], name: str) -> Figure:
    """A curve of one bottom half for each recording, by what it is called: before and after."""
    sides: dict[str, Curves] = {"wait": {}, "duration": {}}
    for label, trace in traces.items():
        for what, found in own_times(trace):
            sides[what][label] = _of(found, name)["ns"].to_numpy()
    return _figure(sides, dict(zip(traces, SERIES, strict=False)), name)


def _of(found: pd.DataFrame, name: str | None) -> pd.DataFrame:
    return found if name is None else found[(found["name"] == name).to_numpy()]


def _figure(sides: dict[str, Curves], colours: dict[str, str], name: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    titles = {"wait": "from schedule to run", "duration": "from start to end of the callback"}
    axes = figure.subplots(1, 2, sharey=True)
    for one, (what, curves) in zip(axes, sides.items(), strict=True):
        _draw(one, {label: values for label, values in curves.items() if len(values)}, colours)
        one.set_title(titles[what], loc="left")
    axes[0].set_ylabel("share that took at most so long")
    figure.suptitle(plain(name))
    return figure


def _draw(axes: Axes, curves: Curves, colours: Mapping[str, str]) -> None:
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: show(value, "ns")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    for mark, at in MARKS.items():
        axes.axhline(at, color=INK, lw=0.7, ls=":")
        axes.annotate(mark, (1.01, at), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    if not curves:
        axes.text(0.5, 0.5, "none recorded", transform=axes.transAxes, ha="center")
        return
    for label, values in curves.items():
        # A clock that is too coarse gives 0, which a logarithmic axis has no place for.
        ordered = np.sort(np.maximum(values, 1))
        # Of millions as many as the picture has room for, the longest among them.
        shown = np.unique(np.linspace(0, len(ordered) - 1, POINTS).astype(np.int64))
        share = (shown + 1) / len(ordered)
        marks = np.percentile(ordered, [100 * at for at in MARKS.values()])
        text = ", ".join(f"{mark} {show(ns, 'ns')}" for mark, ns in zip(MARKS, marks, strict=True))
        axes.step(ordered[shown], share, where="post", color=colours[label],
                  label=f"{plain(label)} ({len(ordered):,}): {text}")  # fmt: skip
        axes.plot(marks, list(MARKS.values()), "o", ms=5, color=colours[label])
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False, fontsize=8)
