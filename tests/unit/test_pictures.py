"""The pictures can be read: no text is cut off, or lies over another one's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from qtrace.analysis import Trace, open_traces
from qtrace.analysis.pictures.lanes import swim_lanes, window
from qtrace.analysis.pictures.latency import by_role, side_by_side
from qtrace.analysis.pictures.reply import reply_timeline
from qtrace.analysis.pictures.shares import shares
from qtrace.analysis.pictures.stranded import stranded_timeline
from qtrace.trace.schema import Event
from tests.unit.event_rows import NAME, recording, run, schedule

SAMPLES = Path(__file__).parents[2] / "analysis" / "samples"
# What two texts may share, in pixels: their boxes are a little larger than their letters.
TOUCH = 2.0


def sample(name: str) -> Trace:
    return open_traces(SAMPLES / name)[0]


def beside(*names: str) -> dict[str, Trace]:
    return {name.partition("-7")[0]: sample(name) for name in names}


def whole(name: str) -> Figure:
    runs = sample(name).runs
    return window(sample(name), int(runs["time_ns"].min()), int(runs["end_ns"].max()))


LATE = ("late-reply-stock-10.0-kvm.parquet", "late-reply-rerouted-10.0-kvm.parquet")
COMPARED = ("stock-7.2-tcg.parquet", "held-7.2-tcg.parquet", "rerouted-7.2-tcg.parquet")
DRAWN: dict[str, Callable[[], Figure]] = {
    "lanes of few runs": lambda: swim_lanes(sample("vcpu-poll-7.2-tcg.csv")),
    "lanes of many threads": lambda: swim_lanes(sample("all-pflash-7.2-kvm.parquet")),
    "window with nested runs": lambda: whole("all-save-7.2-tcg.parquet"),
    "window of an IOThread": lambda: whole("all-daemon-10.0.parquet"),
    "latencies by role": lambda: by_role(sample("all-pflash-7.2-kvm.parquet")),
    "latencies side by side": lambda: side_by_side(beside(*COMPARED), NAME),
    "shares": lambda: shares(beside(*COMPARED), NAME, "vcpu-poll"),
    "late replies": lambda: reply_timeline(beside(*LATE), "snapshot-save"),
    "replies of --all": lambda: reply_timeline(
        beside("all-save-7.2-tcg.parquet", "all-save-rerouted-7.2-tcg.parquet"), "snapshot-save"
    ),
    "stranded": lambda: stranded_timeline(sample("stranded-10.0-tcg.csv")),
    "stranded of --all": lambda: stranded_timeline(sample("all-stranded-7.2-tcg.parquet")),
}


def drawn(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> dict[Text, Bbox]:
    """The texts that are really drawn, and where: an axis keeps more labels than it shows."""
    boxes: dict[Text, Bbox] = {}
    draw = Text.draw

    def note(text: Text, renderer: RendererBase) -> None:
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent(renderer)

    monkeypatch.setattr(Text, "draw", note)
    FigureCanvasAgg(figure).draw()
    return boxes


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_shows_all_its_texts_and_each_in_its_own_place(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = DRAWN[name]()
    boxes = drawn(figure, monkeypatch)
    assert len(boxes) > 3
    for text, box in boxes.items():
        outside = (-box.x0, box.x1 - figure.bbox.x1, -box.y0, box.y1 - figure.bbox.y1)
        assert max(outside) <= 1, text
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        shared = (min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))
        assert min(shared) <= TOUCH, (one.get_text(), other.get_text())


def test_runs_inside_runs_stand_on_top_of_them(tmp_path: Path) -> None:
    def ended(time_ns: int, bh: int) -> Event:
        return replace(run(time_ns, bh=bh), event="return", stack=())

    events = [schedule(t, opaque=t) for t in (1, 2, 3, 4)]
    runs = [run(10, bh=1, opaque=1), run(20, bh=2, opaque=2), run(30, bh=3, opaque=3)]
    ends = [ended(40, 3), ended(50, 2), run(60, bh=4, opaque=4), ended(70, 4), ended(80, 1)]
    trace = recording(tmp_path / "t.csv", *events, *runs, *ends)
    figure = window(open_traces(trace.path)[0], 0, 100)
    (bars,) = figure.findobj(PolyCollection)
    assert isinstance(bars, PolyCollection)
    corners = [path.vertices[:4] for path in bars.get_paths()]
    lefts = {float(one[0, 0] * 1000): float(one[0, 1]) for one in corners}
    levels = [lefts[begun] for begun in sorted(lefts)]
    # Lanes count downwards: three levels, and the last one is inside the first alone.
    assert levels[0] > levels[1] > levels[2]
    assert levels[3] == levels[1]


@pytest.mark.parametrize(
    "draw",
    [
        swim_lanes, by_role, stranded_timeline, lambda trace: window(trace, 0, 10**9),
        lambda trace: side_by_side({"before": trace}, NAME),
        lambda trace: shares({"before": trace}, NAME, "vcpu-poll"),
        lambda trace: reply_timeline({"before": trace}, "snapshot-save"),
    ],
)  # fmt: skip
def test_a_recording_without_events_gives_a_picture_that_says_so(
    draw: Callable[[Trace], Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = draw(open_traces(recording(tmp_path / "t.csv").path)[0])
    assert drawn(figure, monkeypatch)
