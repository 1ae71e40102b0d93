"""A bottom half that cannot run any more, beside the wait that keeps its thread from it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qtrace.analysis.frames import Frames
from qtrace.analysis.pictures.style import COLOURS, INK, WIDTH, draw_lanes, plain, unit
from qtrace.analysis.stacks import functions, judge_wait
from qtrace.analysis.stranded import Proof
from qtrace.units import show

WAITS = "#e69f00"
HEIGHT = 0.5
# Of the callers in whose wait the thread is.
CALLERS = 3
# The part of the axis that a text needs.
APART = 0.2


def stranded_timeline(trace: Frames) -> Figure:
    """What QEMU was told; a lane for each stranded bottom half, with its runs before and since when
    it is known to be pending for good; and the threads that could run them, with the looks that
    show them waiting."""
    proofs = dict(sorted(trace.proofs.items()))
    if not proofs:
        figure = Figure(figsize=(WIDTH, 1))
        figure.suptitle("nothing is stranded in this recording")
        return figure
    threads = {proof.tid: proof for proof in proofs.values()}
    lanes = 1 + len(proofs) + len(threads)
    figure = Figure(figsize=(WIDTH, 0.9 + 0.8 * lanes), layout="constrained")
    axes = figure.subplots()
    times = trace.events["time_ns"].to_numpy(np.int64)
    # The attach row may be older by as long as arming took.
    start, until = int(times[1 if len(times) > 1 else 0]), int(times[-1])
    name, size = unit(until - start)
    texts = [_commands(axes, trace, 0, start, size)]
    for lane, (index, proof) in enumerate(proofs.items(), 1):
        texts.append(_half(axes, trace, index, proof, lane, start, until, size))
    for lane, proof in enumerate(threads.values(), len(proofs) + 1):
        texts.append(_thread(axes, trace, proof, lane, start, size))
    draw_lanes(axes, texts)
    axes.set_xlim(-0.02 * (until - start) / size, 1.02 * (until - start) / size)
    axes.set_xlabel(f"{name} since the first event")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _half(
    axes: Axes, trace: Frames, index: int, proof: Proof, lane: int, start: int, until: int,
    size: float,
) -> str:  # fmt: skip
    one = trace.instances.iloc[index]
    same = (trace.runs["callback"] == one["callback"]) & (trace.runs["opaque"] == one["opaque"])
    ran = (trace.runs["time_ns"][same.to_numpy()].to_numpy(np.int64) - start) / size
    if len(ran):
        axes.plot(ran, np.full(len(ran), lane), "|", ms=18, color=COLOURS["main-loop"],
                  label="ran")  # fmt: skip
    since = int(one["scheduled_ns"])
    axes.barh(lane, (until - since) / size, HEIGHT, (since - start) / size, color="white",
              edgecolor=COLOURS["stranded"], hatch="///", label="pending for good")  # fmt: skip
    axes.text((since - start) / size, lane - 0.32, f"seen pending for {show(until - since, 'ns')}",
              fontsize=8, va="bottom")  # fmt: skip
    return f"{plain(str(one['name']))}\nin `{plain(proof.pending_in)}`"


def _thread(axes: Axes, trace: Frames, proof: Proof, lane: int, start: int, size: float) -> str:
    looks = trace.events[(trace.events["event"] == "blocked").to_numpy()]
    looks = looks[(looks["tid"] == proof.tid).to_numpy()]
    times = (np.unique(looks["time_ns"].to_numpy(np.int64)) - start) / size
    axes.barh(lane, times[-1] - times[0], HEIGHT, times[0], color=WAITS, alpha=0.6,
              label="the same wait")  # fmt: skip
    axes.plot(times, np.full(len(times), lane), "D", ms=6, color=INK, label="a look at its stack")
    chain = functions(proof.stack)[judge_wait(proof.stack) :]
    waits = [chain[0], *[frame for frame in chain[1:] if "@" not in frame][:CALLERS]]
    axes.text(times[-1], lane - 0.32, plain(" < ".join(waits)), fontsize=8, va="bottom", ha="right")
    polls = f", polls `{plain(proof.polls)}`" if proof.polls else ""
    return f"{plain(proof.thread)}\n{proof.role} {proof.tid}{polls}"


def _commands(axes: Axes, trace: Frames, lane: int, start: int, size: float) -> str:
    """What QEMU was told; commands close to each other share one text."""
    asked = trace.commands.dropna(subset=["taken_ns"])
    when = (asked["taken_ns"].to_numpy(np.int64) - start) / size
    axes.plot(when, np.full(len(when), lane), "v", ms=7, color=COLOURS["main-loop"], ls="",
              label="taken by QEMU")  # fmt: skip
    apart = (trace.events["time_ns"].max() - start) / size * APART
    group = np.cumsum(np.diff(when, prepend=when[:1]) > apart)
    for number in np.unique(group):
        own = group == number
        text = ", ".join(asked["name"][own].astype(str))
        axes.annotate(plain(text), (when[own][-1], lane), fontsize=8, va="center", xytext=(8, 0),
                      textcoords="offset points")  # fmt: skip
    return "QMP commands"
