"""Which share of a bottom half's instances had a verdict, and where the true share lies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from qtrace.analysis.pictures.style import COLOURS, OTHER, WIDTH, draw_lanes, plain
from qtrace.analysis.rates import CONFIDENCE, Count, say_count
from qtrace.analysis.traces import AnalysedTrace


def shares(traces: Mapping[str, AnalysedTrace], name: str, verdict: str) -> Figure:
    """A lane for each recording, by what it is called: the share, and its interval."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.55 * max(1, len(traces))), layout="constrained")
    axes = figure.subplots()
    colour = COLOURS.get(verdict, OTHER)
    for lane, trace in enumerate(traces.values()):
        own = (trace.instances["name"] == name).to_numpy()
        hits = own & (trace.instances["verdict"] == verdict).to_numpy()
        count = Count(int(np.sum(hits)), int(np.sum(own)))
        low, high = count.interval()
        axes.hlines(lane, low, high, color=colour, lw=8, alpha=0.35)
        axes.plot(count.share, lane, "D", ms=7, color=colour, clip_on=False)
        axes.annotate(say_count(count), (high, lane), fontsize=9, va="center", xytext=(8, 0),
                      textcoords="offset points")  # fmt: skip
    draw_lanes(axes, [plain(label) for label in traces])
    # Room for the text beside a share near the end.
    axes.set_xlim(-0.01, 1.35)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"share with the verdict {verdict}, and its {CONFIDENCE:.0%} interval")
    axes.set_title(plain(name), loc="left")
    return figure
