"""What is said of one instance, from rows as the recorders write them and on real recordings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qtrace.analysis import Trace, open_traces
from qtrace.analysis.selection import select_instances
from qtrace.errors import NoMatch, NoSuchInstance
from qtrace.trace.schema import PARTIAL, Event
from tests.unit.event_rows import (
    CALLBACK,
    CTX,
    MAIN_LOOP,
    NAME,
    OPAQUE,
    PID,
    VCPU_POLL,
    attach,
    detach,
    lost,
    recording,
    run,
    run_on_vcpu,
    schedule,
    write,
)

SAMPLES = Path(__file__).resolve().parents[2] / "analysis/samples"
MS = 1_000_000


def explained(folder: Path, *events: Event, index: int = 0, **header: Any) -> str:
    """The prose about an instance; the recording begins at 1 ns."""
    return Trace(recording(folder / "t.csv", *events, **header)).explain(index)


def returned(run: Event, time_ns: int) -> Event:
    return Event(
        time_ns, "return", run.tid, run.thread, run.role, run.name, run.context, run.ctx, run.bh,
        run.callback, run.opaque,
    )  # fmt: skip


def other(time_ns: int, until_ns: int, name: str = "slow", **changes: Any) -> list[Event]:
    begun = run(time_ns, name=name, callback=7, bh=0x77, **changes)
    return [begun, returned(begun, until_ns)]


def test_who_scheduled_it_where_it_ran_and_for_how_long(tmp_path: Path) -> None:
    on_vcpu = run_on_vcpu(3 * MS + 1)
    text = explained(tmp_path, schedule(MS + 1), on_vcpu, returned(on_vcpu, 8 * MS + 1))
    lines = text.split("\n")
    assert lines[0] == f"{NAME}, instance 0 of {tmp_path / 't.csv'}"
    assert lines[1].startswith(
        "At 0.001000 s the main thread (tid 100) scheduled it into `main`: "
        "qemu-system-x86_64@0x60a100 <- job_co_entry (in a coroutine,"
    )
    assert lines[2].startswith("It waited 2 ms. The main thread (tid 100), which owns `main`, ran")
    assert lines[3].startswith(
        "At 0.003000 s vCPU thread CPU 0/TCG (tid 101) ran it inside aio_poll() of blk_pwrite,"
        f" for a device access of the guest (memory_region_dispatch_write): {NAME} <- aio_bh_poll"
    )
    assert lines[4] == "It returned after 5 ms."
    assert lines[5].startswith("Verdict vcpu-poll: a vCPU thread ran it with aio_poll()")
    assert lines[6] == f"Rows 3 (schedule), 4 (run), 5 (return) of {tmp_path / 't.csv'}."


def test_what_it_waited_behind_is_named_with_its_duration(tmp_path: Path) -> None:
    events = [schedule(10 * MS), *other(11 * MS, 90 * MS), run(95 * MS)]
    text = explained(tmp_path, *events, all={})
    assert "ran 1 bottom half meanwhile, for 79 ms: slow (once)." in text
    assert "It waited behind slow of the same context: `main` is served one after" in text
    assert "that ran for 79 ms (row 4)." in text
    other_context = [schedule(10 * MS), *other(11 * MS, 90 * MS, context="iohandler", ctx=9)]
    text = explained(tmp_path, *other_context, run(95 * MS), all={})
    assert "It waited behind slow of `iohandler`, which kept that thread from `main`;" in text


def test_what_ran_around_it_was_not_in_its_way(tmp_path: Path) -> None:
    around = run(20 * MS, name="around", callback=7, bh=0x77)
    nested = run(30 * MS, stack=(PARTIAL, "bdrv_drain", "aio_poll", "aio_bh_poll", NAME))
    events = [schedule(10 * MS), around, nested, returned(nested, 31 * MS)]
    text = explained(tmp_path, *events, returned(around, 90 * MS), all={})
    assert "ran no other bottom half meanwhile" in text
    assert "ran it inside aio_poll() of bdrv_drain, inside a run of around (row 4): " in text
    assert "(further out was not recorded)" in text


def test_time_in_which_one_ran_inside_another_counts_once(tmp_path: Path) -> None:
    outer, inner = other(20 * MS, 60 * MS), other(30 * MS, 40 * MS, "inner", opaque=9)
    events = [schedule(10 * MS), outer[0], *inner, outer[1], run(90 * MS)]
    assert "ran 2 bottom halves meanwhile, for 40 ms: " in explained(tmp_path, *events, all={})


def test_who_else_ran_its_context_meanwhile(tmp_path: Path) -> None:
    polled = other(20 * MS, 21 * MS, tid=101, role="vcpu", thread="CPU 0/TCG", stack=VCPU_POLL)
    text = explained(tmp_path, schedule(10 * MS), *polled, run(90 * MS), all={})
    assert (
        "vCPU thread CPU 0/TCG (tid 101) ran 1 bottom half of `main` meanwhile, inside aio_poll()"
        " of blk_pwrite." in text
    )


def test_inside_which_run_and_for_which_command_it_was_scheduled(tmp_path: Path) -> None:
    dispatch = run(10 * MS, name="do_qmp_dispatch_bh", callback=7, bh=0x77)
    step: dict[str, Any] = {"tid": PID, "role": "main", "name": "snapshot-save"}
    begin = Event(11 * MS, "qmp", detail={"step": "begin", "number": 1}, **step)
    end = Event(13 * MS, "qmp", detail={"step": "end", "number": 1}, **step)
    events = [dispatch, begin, schedule(12 * MS), end, returned(dispatch, 14 * MS), run(20 * MS)]
    text = explained(tmp_path, *events, schedule(30 * MS), all={}, index=1)
    assert (
        "into `main`, inside do_qmp_dispatch_bh (row 3), for the QMP command snapshot-save (row 4):"
        in text
    )
    # The one that came after the command's end is not of it.
    after = Trace(tmp_path / "t.csv").explain(2)
    assert "QMP" not in after


def test_what_is_not_known_is_said_to_be(tmp_path: Path) -> None:
    text = explained(tmp_path, run(20 * MS))
    assert "Its schedule is not in the recording" in text
    assert "how long it waited in `main`, is not known." in text
    assert "How long it ran is not known: returns were not recorded" in text
    text = explained(tmp_path, schedule(10 * MS), run(20 * MS))
    assert "What else ran meanwhile is not known: only watched bottom halves were recorded" in text
    text = explained(tmp_path, run(20 * MS, role="", thread="x", tid=77, stack=()))
    assert "of unknown role ran it; its stack could not be read." in text
    assert "Verdict inconclusive: " in text
    seen = schedule(5, tid=0, thread="", role="", stack=())
    text = explained(tmp_path, seen)
    assert "it was seen pending in `main`; who had scheduled it is not known." in text


def test_lost_events_are_told_and_nothing_is_claimed(tmp_path: Path) -> None:
    text = explained(tmp_path, schedule(10 * MS), lost(12 * MS, 14 * MS, 3), run_on_vcpu(20 * MS))
    assert "Verdict inconclusive: events were lost during its life, up to 3 of them." in text


def test_one_that_did_not_return_is_told_for_how_long_at_least(tmp_path: Path) -> None:
    events = [attach(all={}), schedule(10 * MS), run(20 * MS)]
    path = write(tmp_path / "t.csv", [*events, detach(900 * MS, until_ns=700 * MS)])
    text = Trace(path).explain(0)
    assert "It had not returned 680 ms later, when the recording ended." in text
    path = write(tmp_path / "t.csv", [*events, detach(900 * MS)])
    assert "Whether it returned before the recording ended is not known." in (
        Trace(path).explain(0)
    )


def test_one_that_never_ran_or_was_taken_off(tmp_path: Path) -> None:
    text = explained(tmp_path, schedule(10 * MS))
    assert "It was still pending when the recording ended, 990 ms later." in text
    assert "Verdict pending: the recording ended first, and nothing in it proves" in text
    same: dict[str, Any] = {"bh": 5, "name": NAME, "ctx": CTX, "callback": CALLBACK}
    cancel = Event(20 * MS, "cancel", PID, "qemu", "main", opaque=OPAQUE, **same)
    text = explained(tmp_path, schedule(10 * MS, bh=5), schedule(11 * MS, bh=5), cancel)
    assert "It was scheduled once more while it was pending, which inserts nothing." in text
    assert "At 0.020000 s the main thread (tid 100) cancelled it." in text
    assert "Verdict cancelled: it was taken off before it ran (row 5)." in text


def test_instances_are_picked_by_number_row_name_or_as_the_worst(tmp_path: Path) -> None:
    on_vcpu = run_on_vcpu(50)
    events = [schedule(10), run(20), schedule(30), on_vcpu, returned(on_vcpu, 60), schedule(70)]
    one = Trace(recording(tmp_path / "t.csv", *events, *other(80, 90)))
    assert select_instances(one) == [1]
    assert select_instances(one, patterns=["s*"]) == [1, 3]
    assert select_instances(one, patterns=[NAME], every=True) == [0, 1, 2]
    assert select_instances(one, [2, 0]) == [2, 0]
    assert select_instances(one, rows=[3, 4, 6, 7]) == [0, 1]
    for wrong in ({"numbers": [4]}, {"numbers": [-1]}, {"rows": [2]}, {"rows": [99]}):
        with pytest.raises(NoSuchInstance):
            select_instances(one, **wrong)
    with pytest.raises(NoMatch):
        select_instances(one, patterns=["x"])


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.[cp]*")), ids=lambda path: path.name)
def test_whatever_was_recorded_is_explained_with_rows_of_its_own(path: Path) -> None:
    one = open_traces(path)[0]
    names = sorted(set(one.instances["name"].astype(object)))
    for index in select_instances(one, patterns=names):
        text, own = one.explain(index), one.instances.iloc[index]
        assert f"\nVerdict {own['verdict']}: " in text
        assert "nan" not in text.lower().replace(str(path).lower(), "")
        cited = {int(number) for number in re.findall(r"\d+", text.split("\nRows ")[1])}
        for column in ("scheduled_row", "ended_row"):
            assert pd.isna(own[column]) or int(own[column]) in cited


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qtrace", "explain", *map(str, args)], capture_output=True, text=True
    )


def test_the_command_explains_the_worst_and_ends_with_its_status(tmp_path: Path) -> None:
    trace = recording(
        tmp_path / "t.csv", schedule(10), run(20), schedule(30), run_on_vcpu(50), schedule(70)
    ).path
    done = command(trace)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{NAME}, instance 1 of ")
    done = command(trace, "0", "--format", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["schema_version"], report["trace"]) == (0, 2, str(trace))
    (one,) = report["instances"]
    assert (one["instance"], one["verdict"], one["scheduled_row"]) == (0, "main-loop", 3)
    assert "dispatched it" in one["text"]
    done = command(trace, "--list")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["0", "1", "2"]
    done = command(trace, "9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no instance 9: ")


def test_a_hostile_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "x\x1b[31m\n"
    stack = (*MAIN_LOOP[:-1], evil)
    trace = recording(
        tmp_path / "t.csv", schedule(10, name=evil), run(20, name=evil, stack=stack), watched=[]
    )
    done = command(trace.path, "0")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.count("\n") == 7
