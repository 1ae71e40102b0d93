"""``--all`` against the kernel's own counters, in every QEMU program, under a known load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qtrace.analysis import Trace, exit_status, judge
from qtrace.errors import ExitStatus
from qtrace.lab.guest import Accelerator
from qtrace.trace.reader import TraceFile, read_trace
from tests.live.support import loads
from tests.live.support.counted import counting, own_copy

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

# Primes: no batch divides them.
REQUESTS, SOAK_REQUESTS = 503, 100_003
KINDS = ("schedule", "run", "return", "cancel", "delete", "co_schedule")
SCHEDULERS = (
    "qemu_bh_schedule", "qemu_bh_schedule_idle", "aio_bh_schedule_oneshot_full", "aio_co_schedule",
)  # fmt: skip

PROGRAMS = pytest.mark.parametrize(
    ("program", "run", "options"),
    [
        pytest.param("qemu-img", loads.image, (), id="img-threads"),
        pytest.param("qemu-img", loads.image, ("-n",), id="img-native"),
        pytest.param("qemu-nbd", loads.nbd, (), id="nbd"),
        pytest.param("qemu-storage-daemon", loads.daemon, (), id="daemon"),
    ],
)


@PROGRAMS
def test_every_event_of_a_program_is_there(
    qemu_binary: Path, program: str, run: loads.Run, options: tuple[str, ...], tmp_path: Path
) -> None:
    counts, load = driven(qemu_binary.with_name(program), run, options, tmp_path, REQUESTS)
    read = read_trace(load.trace)
    check_counts(read, counts)
    check_load(read.frame, REQUESTS, native="-n" in options)
    check_verdicts(load.trace)


def test_every_event_of_a_guests_disk_is_there_in_its_iothread(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    counts, load = driven(qemu_binary, loads.system, ("-accel", accel), tmp_path, REQUESTS)
    read = read_trace(load.trace)
    check_counts(read, counts)
    check_iothread(read.frame, load)


@pytest.mark.soak
@PROGRAMS
def test_every_event_of_100003_requests_is_there(
    qemu_binary: Path, program: str, run: loads.Run, options: tuple[str, ...], tmp_path: Path,
    soak_row: Callable[..., None],
) -> None:  # fmt: skip
    counts, load = driven(qemu_binary.with_name(program), run, options, tmp_path, SOAK_REQUESTS)
    read = read_trace(load.trace)
    soak_row("100,003 requests, every event", summary(read))
    check_counts(read, counts)
    check_load(read.frame, SOAK_REQUESTS, native="-n" in options)
    check_verdicts(load.trace)


@pytest.mark.soak
def test_every_event_of_100003_requests_of_a_guest_is_there(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    counts, load = driven(qemu_binary, loads.system, ("-accel", accel), tmp_path, SOAK_REQUESTS)
    read = read_trace(load.trace)
    soak_row("100,003 requests of a guest, every event", summary(read))
    check_counts(read, counts)
    check_iothread(read.frame, load, SOAK_REQUESTS)


def driven(
    program: Path, run: loads.Run, options: tuple[str, ...], folder: Path, requests: int
) -> tuple[Counter[str], loads.Load]:
    copy = own_copy(program, folder)
    with counting(copy) as counts:
        load = run(copy, program.parent, folder, requests, *options)
    return counts, load


def summary(read: TraceFile) -> str:
    counts = read.detach["all"]
    return f"{counts['produced']} events, {counts['lost']} lost"


def check_ends(read: TraceFile, rows: Counter[str]) -> None:
    """Each run has its return, but for those that the target ended inside of, as it may."""
    one = Trace(read)
    cut_off = one.runs[one.runs["end_ns"].isna().to_numpy()].index
    assert rows["run"] - rows["return"] == len(cut_off)
    # Its thread ran nothing outside of it any more.
    assert list(cut_off) == list(one.unfinished.index)


def check_counts(read: TraceFile, counts: Counter[str]) -> None:
    """Row by row what the kernel counted beside us."""
    frame = read.frame
    rows: Counter[str] = Counter(frame["event"].astype(str))
    every = read.detach["all"]
    assert (every["lost"], every["produced"]) == (0, sum(rows[kind] for kind in KINDS))
    assert rows["run"] == counts["aio_bh_call"] > 0
    check_ends(read, rows)
    assert rows["cancel"] == counts["cancel"]
    assert rows["co_schedule"] == counts["aio_co_schedule"]
    assert rows["schedule"] == sum(counts[name] for name in SCHEDULERS)
    # aio_ctx_finalize() deletes its context's own, and takes it off itself.
    deleted = frame[frame["event"] == "delete"]
    finalized = int((deleted["name"] == "co_schedule_bh_cb").sum())
    assert rows["delete"] == counts["qemu_bh_delete"] + finalized
    # Whatever was inserted comes off its list: "coalesced" and "requeued" are neither too many
    # nor too few. Only a program's last poll may leave something in it.
    inserted = int((enqueues(frame) == "inserted").sum())
    left = inserted + rows["delete"] - finalized - counts["dequeue"]
    assert 0 <= left <= scheduled_last(frame)


MOST_UNCERTAIN = 1


def check_verdicts(trace: Path) -> None:
    """Nothing is lost, and nothing is uncertain: whose note came first is no matter. But for one
    whose thread others kept from the processor between what it did and its note of it, so that more
    events lie between than an order is looked for in."""
    report = judge([trace], ["*"])
    verdicts = {half["name"]: half["verdicts"] for half in report["bottom_halves"]}
    uncertain = sum(found.get("inconclusive", 0) for found in verdicts.values())
    assert uncertain <= MOST_UNCERTAIN, verdicts
    expected = ExitStatus.INCONCLUSIVE if uncertain else ExitStatus.OK
    assert (exit_status(report), report["lost_events"]) == (expected, 0), verdicts


def scheduled_last(frame: pd.DataFrame) -> int:
    """How many bottom halves were scheduled since their last run began."""
    last = frame.groupby(["event", "bh"], observed=True)["time_ns"].max()
    return int((last["schedule"] > last["run"].reindex(last["schedule"].index).fillna(0)).sum())


def enqueues(frame: pd.DataFrame) -> pd.Series:
    detail = frame.loc[frame["event"] == "schedule", "detail"].astype(str)
    return detail.str.extract(r'"enqueue":"(\w+)"')[0]


def check_load(frame: pd.DataFrame, requests: int, native: bool) -> None:
    """What a request is known to do."""
    by_name = frame.groupby(["name", "event"], observed=True).size()
    if native:
        # Each completion is a one-shot of its own, between a schedule and a cancel of laio's.
        name = "blk_aio_complete_bh" if ("blk_aio_complete_bh", "run") in by_name.index else "cb"
        assert by_name[name, "schedule"] == by_name[name, "run"] == requests
        laio = by_name["qemu_laio_completion_bh"]
        assert laio["schedule"] == laio["cancel"]
    else:
        name = "thread_pool_completion_bh"
        # A worker schedules it, and it schedules and cancels itself for each that it finds done.
        assert by_name[name, "schedule"] == 2 * by_name[name, "cancel"] == 2 * requests
        # These programs name no thread: a worker is known by the function that it began with.
        own = frame[(frame["name"] == name) & (frame["event"] == "schedule")]
        roles = own["stack"].astype(str).str.contains(r";worker_thread\+0x", regex=True)
        assert set(own.loc[roles, "role"]) == {"worker"}
        assert roles.sum() == requests
    assert set(frame.loc[frame["name"] == name, "context"]) == {"main"}
    runs = frame[frame["event"] == "run"]
    assert runs["stack"].str.contains(r"^\[partial\];.+;aio_bh_poll\+0x", regex=True).all()


def check_iothread(frame: pd.DataFrame, load: loads.Load, requests: int = REQUESTS) -> None:
    """Context and thread of each event against what query-iothreads says."""
    context, tid = f"iothread:{loads.IOTHREAD}", load.iothreads[loads.IOTHREAD]
    own = frame[frame["context"] == context]
    runs = own[own["event"] == "run"]
    assert set(runs["tid"]) == {tid}
    assert set(runs["role"]) == {"iothread"}
    assert runs["stack"].str.contains(";aio_poll+0x", regex=False).all()
    pool = own[own["name"] == "thread_pool_completion_bh"]
    assert (pool["event"] == "cancel").sum() == requests
    assert (pool["event"] == "schedule").sum() == 2 * requests
    assert set(pool.loc[pool["role"] == "worker", "event"]) == {"schedule"}
    # Nothing that another context owns ran there.
    assert set(frame.loc[(frame["event"] == "run") & (frame["tid"] == tid), "context"]) == {context}
