"""Which share of a bottom half's instances had a verdict, and where the true share lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from qtrace.analysis.frames import Frames
from qtrace.analysis.pictures.style import COLOURS, OTHER, WIDTH, draw_lanes, plain
from qtrace.analysis.rates import CONFIDENCE, Count, Series, bursts, hits, say_count


def shares(traces: Mapping[str, Frames], name: str, verdict: str) -> Figure:
    """A lane for each recording, by what it is called: the share, and its interval."""
    series = {label: [hits(trace.instances, name, verdict)] for label, trace in traces.items()}
    return shares_of(series, name, verdict)


def shares_of(groups: Mapping[str, Sequence[Series]], name: str, verdict: str) -> Figure:
    """As ``shares``, of groups of recordings: of each recording of a group its hits."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.55 * max(1, len(groups))), layout="constrained")
    axes = figure.subplots()
    colour = COLOURS.get(verdict, OTHER)
    each = bursts(groups.values())
    counts = [
        Count(sum(one.hits for one in own), sum(one.of for one in own), each)
        for own in groups.values()
    ]
    # The highest share fills the picture, with some room for its text behind.
    end = max([count.interval()[1] for count in counts], default=1.0)
    for lane, count in enumerate(counts):
        low, high = count.interval()
        axes.hlines(lane, low, high, color=colour, lw=8, alpha=0.35)
        axes.plot(count.share, lane, "D", ms=7, color=colour, clip_on=False)
        axes.annotate(say_count(count), (high, lane), fontsize=9, va="center", xytext=(8, 0),
                      textcoords="offset points")  # fmt: skip
    draw_lanes(axes, [plain(label) for label in groups])
    axes.set_xlim(-0.01 * end, 1.35 * end)
    axes.set_xticks([tick for tick in MaxNLocator(6).tick_values(0, end) if tick <= 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"share with the verdict {verdict}, and its {CONFIDENCE:.0%} interval")
    axes.set_title(plain(name), loc="left")
    return figure
