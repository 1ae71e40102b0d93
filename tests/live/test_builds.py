"""Builds of QEMU that people run and Debian 12 has not: each command on each (docs/builds.md).

`make test` shows each once on Ubuntu's, `make soak` all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qtrace.lab.guest import Accelerator, Guest
from qtrace.trace.reader import TraceFile, read_trace
from tests.builds import BUILDS, QEMU
from tests.conftest import build
from tests.live import loads
from tests.live.support.attached import attached, save, watched_half
from tests.live.support.counted import counting_calls, counting_inlined
from tests.live.support.experimenting import in_force
from tests.live.support.hung import hung_guest
from tests.live.support.inspecting import check_hung, functions, inspect, thread
from tests.live.test_all_counts import (
    KINDS,
    REQUESTS,
    check_ends,
    check_iothread,
    check_load,
    check_verdicts,
)

pytestmark = pytest.mark.builds

SHOWN = ("ubuntu",)
# Before 6.1 there are no snapshot jobs.
WITHOUT_JOBS = ("old",)
SAVES = 300


def each(*without: str) -> pytest.MarkDecorator:
    """Each build that has what the test needs."""
    names = [name for name in BUILDS if name not in (*without, "installed", "backports")]
    return pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=[] if n in SHOWN else [pytest.mark.soak]) for n in names],
    )


@pytest.mark.bpf
@pytest.mark.soak
@each(*WITHOUT_JOBS)
def test_each_save_is_recorded_as_the_kernel_counts_it(
    name: str, accel: Accelerator, works: Callable[..., None]
) -> None:
    used = build(name)
    with (
        counting_calls(used.files / QEMU, "save_snapshot") as counts,
        Guest(used.starts / QEMU, accel) as guest,
        attached(guest.pid) as attach,
    ):
        save(guest, SAVES)
        _status, report, _err = attach.end()
    half = watched_half(report)
    assert counts["save_snapshot"] == half["scheduled"] == SAVES
    assert set(half["verdicts"]) <= {"main-loop", "vcpu-poll"}
    assert sum(half["verdicts"].values()) == SAVES
    assert {finding["context"] for finding in half["findings"]} <= {"main"}
    works(
        "attach",
        f"{counts['save_snapshot']} saves, {half['scheduled']} schedules, "
        f"{report['lost_events']} lost",
        ", ".join(f"{count} {verdict}" for verdict, count in half["verdicts"].items()),
    )


@pytest.mark.bpf
@pytest.mark.gdb
@pytest.mark.soak
@each(*WITHOUT_JOBS)
def test_steered_runs_are_on_a_vcpu_and_recorded_so(
    name: str, accel: Accelerator, works: Callable[..., None]
) -> None:
    used, count = build(name), 5
    with (
        Guest(used.starts / QEMU, accel) as guest,
        attached(guest.pid) as attach,
        in_force("steer", guest.pid, "--run-on", "vcpu", "--count", count) as steering,
    ):
        save(guest, count)
        status, result, _err = steering.result()
        _status, report, _err = attach.end()
    assert (status, result["as_wanted"], result["problems"]) == (0, count, [])
    assert watched_half(report)["verdicts"] == {"vcpu-poll": count}
    for finding in watched_half(report)["findings"]:
        stack = functions(finding["stack"])
        assert stack[:3] == ["snapshot_save_job_bh", "aio_bh_poll", "aio_poll"]
        assert (finding["role"], finding["context"]) == ("vcpu", "main")
    works("steer", f"{count} of {count} runs on a vCPU thread, recorded beside it")


@pytest.mark.gdb
@pytest.mark.soak
@each(*WITHOUT_JOBS)
def test_gdb_records_the_same(name: str, accel: Accelerator, works: Callable[..., None]) -> None:
    used, count = build(name), 5
    with (
        Guest(used.starts / QEMU, accel) as guest,
        attached(guest.pid, "--backend", "gdb") as attach,
    ):
        save(guest, count)
        _status, report, _err = attach.end()
    half = watched_half(report)
    assert half["scheduled"] == sum(half["verdicts"].values()) == count
    assert set(half["verdicts"]) <= {"main-loop", "vcpu-poll"}
    works("attach --backend gdb", f"{half['scheduled']} of {count} saves")


@each("old")
def test_an_idle_guest_is_clear_and_each_polled_context_known(
    name: str, works: Callable[..., None]
) -> None:
    used = build(name)
    iothread = ("-object", "iothread,id=io0")
    with Guest(used.starts / QEMU, firmware="idle", extra_args=iothread) as guest:
        status, document, _err = inspect("--pid", guest.pid)
    assert (status, document["verdict"]) == (0, "clear"), document["unclear"]
    assert document["missing"] == []
    polled = {poll["context"] for one in document["threads"] for poll in one["polls"]}
    assert polled == {"iothread:io0"}
    assert thread(document, guest.pid)["complete"]
    works("inspect, a sound guest", "clear")


@each(*WITHOUT_JOBS)
def test_what_a_guest_hangs_in_is_named(name: str, works: Callable[..., None]) -> None:
    with hung_guest(build(name).starts / QEMU, "tcg") as guest:
        status, document, _err = inspect("--pid", guest.pid)
    assert status == 1
    check_hung(document, guest.pid)
    works("inspect, a hung guest", "stuck, the bottom half behind it named")


@pytest.mark.bpf
@each(*WITHOUT_JOBS)
def test_every_event_of_qemu_img_is_there(
    name: str, tmp_path: Path, works: Callable[..., None]
) -> None:
    """By a wrapper, as these programs start in roots of their own."""
    used = build(name)
    with counting_inlined(used.files / "qemu-img") as counts:
        load = loads.image(used.starts / "qemu-img", used.starts, tmp_path, REQUESTS)
    read = read_trace(load.trace)
    check_inlined_counts(read, counts)
    check_load(read.frame, REQUESTS, native=False)
    check_verdicts(load.trace)
    works("run --all qemu-img", events(read))


@pytest.mark.bpf
@pytest.mark.soak
@each(*WITHOUT_JOBS)
def test_every_event_of_a_guest_is_there(
    name: str, accel: Accelerator, tmp_path: Path, works: Callable[..., None]
) -> None:
    used = build(name)
    with counting_inlined(used.files / QEMU) as counts:
        load = loads.system(used.starts / QEMU, used.starts, tmp_path, REQUESTS, "-accel", accel)
    read = read_trace(load.trace)
    check_inlined_counts(read, counts)
    check_iothread(read.frame, load)
    works("run --all, a guest with an IOThread", events(read))


@pytest.mark.bpf
@pytest.mark.soak
@pytest.mark.parametrize("program", ["qemu-nbd", "qemu-storage-daemon"])
@each("ubuntu", *WITHOUT_JOBS)
def test_every_event_of_a_server_is_there(
    name: str, program: str, tmp_path: Path, works: Callable[..., None]
) -> None:
    used = build(name)
    run = loads.nbd if program == "qemu-nbd" else loads.daemon
    with counting_inlined(used.files / program) as counts:
        load = run(used.starts / program, used.starts, tmp_path, REQUESTS)
    read = read_trace(load.trace)
    check_inlined_counts(read, counts)
    check_load(read.frame, REQUESTS, native=False)
    works("run --all", events(read))


def check_inlined_counts(read: TraceFile, counts: Counter[str]) -> None:
    rows = Counter(read.frame["event"].astype(str))
    every = read.detach["all"]
    assert (every["lost"], every["produced"]) == (0, sum(rows[kind] for kind in KINDS))
    assert rows["run"] == counts["aio_bh_call"] > 0
    check_ends(read, rows)
    assert rows["cancel"] == counts["cancel"] > 0
    assert rows["co_schedule"] == counts["aio_co_schedule"]
    assert rows["schedule"] + rows["delete"] == counts["enqueue"]


def events(read: TraceFile) -> str:
    """How many there are of each kind."""
    rows = Counter(read.frame["event"].astype(str))
    return ", ".join(f"{rows[kind]} {kind}" for kind in KINDS) + ", each as the kernel counts it"
