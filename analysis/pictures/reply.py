"""When a QMP command was done, when it was answered, and what ran in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qtrace.analysis.arrays import filled
from qtrace.analysis.frames import Frames
from qtrace.analysis.pictures.style import COLOURS, INK, OTHER, WIDTH, draw_lanes, plain, unit
from qtrace.units import show

DONE, WAITS = "#009e73", "#d55e00"
HEIGHT = 0.5
# A bar needs this part of the axis for its name.
NAMED = 0.12


@dataclass(frozen=True)
class Story:
    """A command, from when it was taken until all that it set going had run (nanoseconds)."""

    trace: Frames
    command: dict[str, Any]
    runs: pd.DataFrame
    taken: int
    until: int

    @property
    def replied(self) -> int:
        return int(self.command["replied_ns"])

    @property
    def done(self) -> int:
        return int(self.command["ended_ns"])


def reply_timeline(traces: Mapping[str, Frames], command: str) -> Figure:
    """For each recording, by what it is called, the command of that name that took longest.

    Lanes: the command itself; the job that was created while it was carried out; the thread that
    replied, with the bottom halves that it ran. Left out are recordings without such a command.
    """
    found = {label: told for label, trace in traces.items() if (told := _longest(trace, command))}
    if not found:
        figure = Figure(figsize=(WIDTH, 1))
        figure.suptitle(f"no {plain(command)} with its reply in these recordings")
        return figure
    figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    span = max(story.until - story.taken for story in found.values()) * 1.04
    name, size = unit(span)
    for one, (label, story) in zip(axes, found.items(), strict=True):
        _draw(one, story, span / size, size)
        done, replied = (show(at - story.taken, "ns") for at in (story.done, story.replied))
        one.set_title(f"{plain(label)}: done after {done}, answered after {replied}", loc="left")
    axes[-1].set_xlabel(f"{name} since QEMU took {plain(command)}")
    axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _longest(trace: Frames, command: str) -> Story | None:
    found = trace.commands
    found = found[(found["name"] == command).to_numpy()]
    found = found.dropna(subset=["taken_ns", "begun_ns", "ended_ns", "replied_ns"])
    runs = trace.runs
    runs = runs[(runs["end_ns"].notna() & runs["outer"].isna()).to_numpy()]
    columns = ("end_ns", "instance", "scheduled_ns")
    runs = runs.assign(**{name: filled(runs[name]) for name in columns})
    records: list[dict[str, Any]] = found.to_dict("records")  # type: ignore[assignment]
    stories = [_story(trace, one, runs) for one in records]
    return max(stories, key=lambda story: story.until - story.taken, default=None)


def _story(trace: Frames, command: dict[str, Any], runs: pd.DataFrame) -> Story:
    taken = int(command["taken_ns"])
    own = runs[(runs["tid"] == command["tid"]).to_numpy()]
    caused = own["scheduled_ns"].between(int(command["begun_ns"]), int(command["ended_ns"]))
    until = max(int(command["replied_ns"]), int(own["end_ns"][caused].max()) if caused.any() else 0)
    seen = (own["end_ns"] > taken) & (own["time_ns"] < until)
    return Story(trace, command, own[seen.to_numpy()], taken, until)


def _draw(axes: Axes, story: Story, span: float, size: float) -> None:
    def at(time: int) -> float:
        return (time - story.taken) / size

    def bar(lane: int, since: int, until: int, colour: str, **style: Any) -> None:
        axes.barh(lane, at(until) - at(since), HEIGHT, at(since), color=colour, **style)

    bar(0, story.taken, story.done, DONE, label="carried out", edgecolor=DONE)
    bar(0, story.done, story.replied, "white", edgecolor=WAITS, hatch="///",
        label="done, not answered")  # fmt: skip
    axes.plot(at(story.replied), 0, marker="D", ms=8, color=INK, ls="", label="answered", zorder=4)
    texts = [plain(str(story.command["name"])), _job(axes, story, bar), "main thread"]
    if story.command["role"] != "main":
        texts[2] = plain(str(story.command["thread"]))
    shown: set[str] = set()
    for one in story.runs.to_dict("records"):
        since, until = max(one["time_ns"], story.taken), one["end_ns"]
        verdict = str(story.trace.instances["verdict"].iloc[one["instance"]])
        colour = COLOURS.get(verdict, OTHER) if one["instance"] >= 0 else OTHER
        label = "" if "run" in shown else "a bottom half ran"
        shown.add("run")
        bar(2, since, until, colour, edgecolor=colour, label=label)
        if at(until) - at(since) > NAMED * span:
            text = f"{plain(str(one['name']))} (`{one['context']}`), {show(until - since, 'ns')}"
            inside = at(until) - at(since) > 0.5 * span
            axes.text((at(since) + at(until)) / 2, 2, text, fontsize=8, ha="center", va="center",
                      color="white" if inside else INK, clip_on=True)  # fmt: skip
    draw_lanes(axes, texts)
    axes.set_xlim(-0.01 * span, span)


def _job(axes: Axes, story: Story, bar: Any) -> str:
    """Draw the job that began with the command, and for how long the guest stood still."""
    jobs = story.trace.jobs
    created = jobs["created_ns"].between(int(story.command["begun_ns"]), story.done)
    own = jobs[created.fillna(value=False).to_numpy(np.bool_)]
    if own.empty:
        return "no job"
    job = own.iloc[0]
    name, since = str(job["name"]), int(job["created_ns"])
    until = story.until if pd.isna(job["concluded_ns"]) else int(job["concluded_ns"])
    bar(1, since, until, "#dddddd", label="the job", edgecolor="#dddddd")
    stops = story.trace.qmp_steps
    stops = stops[stops["time_ns"].between(story.taken, until).to_numpy()]
    stop, resume = (
        stops["time_ns"][(stops["name"] == one).to_numpy()] for one in ("STOP", "RESUME")
    )
    if len(stop):
        bar(1, int(stop.iloc[0]), int(resume.iloc[0]) if len(resume) else until, OTHER,
            label="guest stopped", edgecolor=OTHER)  # fmt: skip
    return f"job {plain(name)}"
