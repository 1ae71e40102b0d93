"""Durations and statistics of `--all` traces, and what a schedule's flags decide."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qtrace.analysis import judge, pair_instances
from qtrace.analysis.timing import run_durations
from qtrace.cli.views.statistics_view import print_statistics
from qtrace.trace.reader import TraceFile, read_trace
from qtrace.trace.schema import PARTIAL, Event
from qtrace.trace.writer import CsvWriter

PID, WORKER = 100, 101
BH: dict[str, Any] = {"name": "a_bh", "context": "main", "ctx": 0x1000, "callback": 0x40}
ON_MAIN: dict[str, Any] = {"tid": PID, "thread": "qemu-img", "role": "main"}
STACK = (PARTIAL, "aio_poll+0x124", "aio_bh_poll+0xc6", "a_bh")


def schedule(time: int, enqueue: str = "inserted", bh: int = 0x30, tid: int = WORKER) -> Event:
    detail = {"enqueue": enqueue}
    return Event(time, "schedule", tid, "worker", "worker", bh=bh, detail=detail, **BH)


def run(time: int, bh: int = 0x30, **more: Any) -> Event:
    return Event(time, "run", bh=bh, stack=STACK, **BH, **(ON_MAIN | more))


def ended(time: int, bh: int = 0x30, **more: Any) -> Event:
    return Event(time, "return", bh=bh, **(BH | ON_MAIN | more))


def cancel(time: int, bh: int = 0x30) -> Event:
    return Event(time, "cancel", bh=bh, **BH, **ON_MAIN)


def lost(time: int, since: int) -> Event:
    return Event(time, "lost", detail={"count": 1, "since_ns": since, "probes": "all"})


def written(folder: Path, *events: Event, watched: tuple[str, ...] = ()) -> Path:
    path = folder / "trace.csv"
    header = {
        "format": "qtrace", "version": [1, 0], "all": [],
        "target": {"pid": PID, "program": "qemu-img"},
        "watched": [{"name": name} for name in watched],
    }  # fmt: skip
    with CsvWriter(path, force=True) as writer:
        writer.write([Event(0, "attach", detail=header), *events, Event(10_000, "detach")])
    return path


def trace_of(folder: Path, *events: Event) -> TraceFile:
    return read_trace(written(folder, *events))


def durations(trace: TraceFile) -> list[int]:
    return list(run_durations(trace.frame, trace.losses)["duration_ns"])


def test_a_run_ends_with_its_own_return_also_inside_itself(tmp_path: Path) -> None:
    nested = [run(10), run(20), ended(25), ended(40)]
    assert sorted(durations(trace_of(tmp_path, *nested))) == [5, 30]


def test_a_return_that_nothing_joined_ends_nothing(tmp_path: Path) -> None:
    stray = ended(90, callback=0, name="")
    assert durations(trace_of(tmp_path, run(10), ended(12), run(20), stray)) == [2]


def test_a_loss_inside_a_run_makes_its_duration_unknown(tmp_path: Path) -> None:
    events = [run(10), ended(12), run(20), lost(27, 25), ended(30), run(40), ended(41)]
    assert durations(trace_of(tmp_path, *events)) == [2, 1]


@pytest.mark.parametrize(
    ("events", "ends"),
    [
        # What two CPUs did is noted out of order: the flags know that it was coalesced.
        ([schedule(10), run(20), schedule(21, "coalesced"), ended(30)], ["run"]),
        ([schedule(10), schedule(12, "coalesced"), run(20)], ["run"]),
        # Cancelled, still queued, scheduled again: nothing is inserted, a new instance.
        ([schedule(10), cancel(12), schedule(14, "requeued"), run(20)], ["cancel", "run"]),
        # The cancel was not seen; the flags tell that there was one.
        ([schedule(10), schedule(14, "requeued"), run(20)], ["unseen", "run"]),
        # Taken off the list, scheduled anew, and only then its run was noted.
        ([schedule(10), schedule(14), run(15), run(20)], ["run", "run"]),
        # Real: the run was noted before its schedule, by another CPU.
        ([run(9), schedule(10), schedule(14), run(20)], ["run", "run"]),
        # A one-shot's memory is used again at once.
        ([schedule(10), run(11), ended(12), schedule(13), run(14)], ["run", "run"]),
    ],
)
def test_the_flags_decide_what_is_an_instance(
    events: list[Event], ends: list[str], tmp_path: Path
) -> None:
    instances = pair_instances(trace_of(tmp_path, *events).frame)
    assert list(instances["end"]) == ends


def test_statistics_say_how_often_how_late_how_long_and_who(tmp_path: Path) -> None:
    events = []
    for at in range(100, 1100, 100):
        events += [schedule(at), schedule(at + 1, "coalesced"), run(at + 10), ended(at + 12)]
    events += [replace(schedule(5000), **ON_MAIN), cancel(5001)]
    events[0] = replace(events[0], tid=WORKER + 1)
    (row,) = judge([written(tmp_path, *events)])["statistics"][0]
    assert (row["name"], row["context"]) == ("a_bh", "main")
    assert (row["scheduled"], row["ran"], row["cancelled"], row["coalesced"]) == (11, 10, 1, 10)
    assert row["wait"] == {"p50_ns": 10, "p99_ns": 10, "max_ns": 10}
    assert row["duration"] == {"p50_ns": 2, "p99_ns": 2, "max_ns": 2}
    assert row["roles"] == {"main": 10}
    keys = ("role", "tid", "threads", "count")
    assert [tuple(one[key] for key in keys) for one in row["scheduled_by"]] == [
        ("worker", WORKER + 1, 2, 10), ("main", PID, 1, 1),
    ]  # fmt: skip
    assert row["longest"][0]["stack"] == ["a_bh", "aio_bh_poll", "aio_poll", PARTIAL]


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_page_shows_every_figure_and_folds_no_name(columns: int, tmp_path: Path) -> None:
    names = ("a_bh", "virtio_blk_data_plane_notify_and_more_bh")
    events = []
    for at in range(1000, 40_001_000, 4_000_000):
        for name, bh in zip(names, (0x30, 0x50), strict=True):
            events += [
                replace(event, name=name)
                for event in (
                    replace(schedule(at, bh=bh), stack=(PARTIAL, "aio_co_wake+0x8")),
                    replace(run(at + 250), bh=bh),
                    replace(ended(at + 1_250_250), bh=bh),
                )
            ]
    report = judge([written(tmp_path, *events)])
    text = printed(report, columns)
    assert max(map(len, text)) <= columns
    assert text[0].split() == ["wait", "took"]
    assert text[1].split() == ["bottom", "half", "ran", *["p50", "p99", "max"] * 2]
    figures = "10 +250 ns +250 ns +250 ns( +1.25 ms){3}"
    assert sum(bool(re.search(rf" {figures}$", line)) for line in text) == 2
    for name in names:
        assert any(re.match(rf"{name}( +{figures})?$", line) for line in text)
    whole = " ".join(" ".join(text).split())
    assert whole.count("in main; ran on main") == 2
    assert f"scheduled 10 by aio_co_wake on worker worker (tid {WORKER})" in whole
    assert re.search(r"1\.25 ms at 0\.\d{6} s \(row \d+\): \w+_bh on", whole)


def printed(report: dict[str, Any], columns: int) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    print_statistics(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().strip("\n").splitlines()


def test_a_loss_of_all_is_none_of_a_watched_bottom_half(tmp_path: Path) -> None:
    events = [schedule(10), lost(15, 11), run(20)]
    watched = judge([written(tmp_path, *events, watched=("a_bh",))])
    assert watched["verdict"] == "main-loop"
    assert judge([written(tmp_path, *events)])["verdict"] == "inconclusive"


def test_only_some_names_are_read_with_their_row_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, schedule(10), run(20), ended(30))
    some = read_trace(path, only=["other"])
    assert list(some.frame["event"]) == ["attach", "detach"]
    assert list(some.frame["row"]) == [2, 6]
    assert len(read_trace(path, only=["a_bh"]).frame) == 5
