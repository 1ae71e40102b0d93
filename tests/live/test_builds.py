"""Builds of QEMU that people run and Debian 12 has not: each command on each (docs/builds.md).

`make test` shows each once on Ubuntu's, `make soak` all of them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.snapshot_jobs import REAL, run_job
from qtrace.process.qmp_client import QmpClient
from qtrace.record.probes import Backend
from qtrace.record.recording_options import RecordingOptions
from qtrace.record.start import start_recording
from qtrace.trace.reader import TraceFile, read_trace
from tests.builds import BUILDS, QEMU
from tests.conftest import build
from tests.limits import TIMEOUT_S
from tests.live.support import loads
from tests.live.support.attached import attached, save, wait_for, watched_half
from tests.live.support.counted import counting_calls, counting_inlined, own_copy
from tests.live.support.experimenting import in_force
from tests.live.support.gdb_session import Target, core_of, gdb
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
# What all other tests run on.
ELSEWHERE = ("installed", "backports")
# Before 6.1 there are no snapshot jobs, and bottom halves have no names.
WITHOUT_JOBS = NAMELESS = ("old",)
SAVES, STEERED = 300, 20


def each(*without: str) -> pytest.MarkDecorator:
    """Each build for x86 guests that has what the test needs."""
    names = [name for name in BUILDS if name not in (*without, *ELSEWHERE, "arm")]
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
    used, count = build(name), STEERED
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


@pytest.mark.bpf
@pytest.mark.soak
@pytest.mark.parametrize("scenario", ["vcpu-poll", "reroute", "stranded"])
@each(*WITHOUT_JOBS)
def test_the_lab_shows_its_verdicts(name: str, scenario: str, works: Callable[..., None]) -> None:
    qemu = build(name).starts / QEMU
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "lab", scenario, "--qemu", qemu, "--format", "json"],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    verdict = json.loads(run.stdout)["verdict"]
    assert verdict == {"reroute": "main-loop"}.get(scenario, scenario)
    works(f"lab {scenario}", verdict)


@pytest.mark.bpf
@pytest.mark.soak
@pytest.mark.parametrize("backend", ["ebpf", pytest.param("gdb", marks=pytest.mark.gdb)])
@each(*WITHOUT_JOBS)
def test_each_step_of_a_command_is_there(
    name: str, backend: Backend, tmp_path: Path, works: Callable[..., None]
) -> None:
    used, trace = build(name), tmp_path / "trace.csv"
    with (
        Guest(used.starts / QEMU, firmware="idle", disk=True) as guest,
        start_recording(guest.pid, RecordingOptions(trace, backend=backend)) as recording,
    ):
        run_job(guest.qmp, "snapshot-save", "first", **REAL)
        recording.poll(0)
    frame = read_trace(trace).frame
    rows = frame[(frame["event"] == "qmp") & (frame["name"] == "snapshot-save")]
    steps = [json.loads(text)["step"] for text in rows["detail"]]
    assert steps == ["command", "begin", "end", "reply"]
    works(f"attach --backend {backend}, a QMP command", ", ".join(steps))


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


@each()
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


@each()
def test_what_a_guest_hangs_in_is_named(name: str, works: Callable[..., None]) -> None:
    with hung_guest(build(name).starts / QEMU, "tcg") as guest:
        status, document, _err = inspect("--pid", guest.pid)
    assert status == 1
    if name in NAMELESS:
        (finding,) = [one for one in document["findings"] if one["verdict"] == "stuck"]
        assert (finding["tid"], finding["polls"]) == (guest.pid, "main")
        assert finding["waits_in"][0].startswith("bdrv_drain")
        assert document["missing"] == []
        works("inspect, a hung guest", "stuck")
        return
    check_hung(document, guest.pid)
    works("inspect, a hung guest", "stuck, the bottom half behind it named")


def asked(*words: object) -> tuple[int, Any]:
    """A command's exit status, and its JSON."""
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", *map(str, words), "--format", "json"],
        text=True, capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout)


@pytest.mark.bpf
@pytest.mark.soak
@each()
def test_check_says_whether_it_is_healthy_and_an_autopsy_keeps_what_hangs(
    name: str, accel: Accelerator, tmp_path: Path, works: Callable[..., None]
) -> None:
    used, path, core = build(name), tmp_path / "autopsy", tmp_path / "core"
    with Guest(used.starts / QEMU, accel) as guest:
        sound = asked("check", "--pid", guest.pid, "--for", "3s")
        busy = asked("autopsy", "--pid", guest.pid, "-o", path)
    read = asked("inspect", "--autopsy", path)
    assert (sound[0], sound[1]["verdict"]) == (0, "healthy"), sound[1]["unclear"]
    assert (busy[0], read[0], read[1]["verdict"]) == (0, 0, "clear"), read[1]["unclear"]
    with hung_guest(used.starts / QEMU, accel) as guest:
        pid = guest.pid
        hung = asked("check", "--pid", pid)
        taken = asked("autopsy", "--pid", pid, "-o", path, "--force", "--core", core)
    read = asked("inspect", "--autopsy", path)
    dead = asked("inspect", "--core", core, "--exe", used.files / QEMU)
    assert taken[0] == 0
    for status, document in (hung, read):
        assert (status, document["verdict"]) == (1, "stuck")
    for _status, document in (hung, read, dead):
        first = document["findings"][0]
        assert (first["tid"], first["polls"]) == (pid, "main")
        assert first["waits_in"][0].startswith("bdrv_drain")
    size = f"{taken[1]['bytes'] / 1e6:.1f} MB"
    works("check", "healthy; of a hung guest stuck")
    works(
        "autopsy", f"{size}; what inspect says of it, and of its core: what a hung guest waits for"
    )


@pytest.mark.gdb
@pytest.mark.soak
@each(*WITHOUT_JOBS)
def test_a_core_of_a_hung_guest_and_gdb_tell_the_same(
    name: str, tmp_path: Path, works: Callable[..., None]
) -> None:
    used = build(name)
    exe = used.files / QEMU
    with hung_guest(used.starts / QEMU, "tcg") as guest:
        _status, alive, _err = inspect("--pid", guest.pid)
        core = core_of(guest.pid, exe, tmp_path).arguments[1]
        target = Target(("-p", str(guest.pid)), guest.pid, exe)
        lost = gdb(target, "aio why", "aio threads")
        found = gdb(target, f"set sysroot /proc/{guest.pid}/root", "aio why", "aio threads")
    status, dead, _err = inspect("--core", core, "--exe", exe)
    assert status == 4
    told = [(f["verdict"], f["tid"], f["waits_in"]) for f in alive["findings"]]
    assert [(f["verdict"], f["tid"], f["waits_in"]) for f in dead["findings"]] == told != []
    works("inspect --core", "the findings of the live one")
    # The host's libraries have the same paths, and are others.
    assert f"set sysroot /proc/{guest.pid}/root" in lost
    assert "nothing is in the way" not in lost
    assert f"the main loop does not run: {guest.pid} (main) waits in bdrv_drain_all_begin" in found
    assert "set sysroot" not in found
    works("gdb's aio why", "the finding; before `set sysroot`, that it lacks the files")


@pytest.mark.bpf
@each()
def test_every_event_of_qemu_img_is_there(
    name: str, tmp_path: Path, works: Callable[..., None]
) -> None:
    """By a wrapper, as these programs start in roots of their own."""
    used = build(name)
    with counting_inlined(used.files / "qemu-img") as counts:
        load = loads.image(used.starts / "qemu-img", used.starts, tmp_path, REQUESTS)
    read = read_trace(load.trace)
    check_inlined_counts(read, counts)
    check_verdicts(load.trace)
    if name not in NAMELESS:
        check_load(read.frame, REQUESTS, native=False)
    works("run --all qemu-img", events(read))


@pytest.mark.bpf
@pytest.mark.soak
# Of Debian 13's 10.0.13 the firmware's driver gets no answer, without qtrace either.
@each("stable")
def test_every_event_of_a_guest_is_there(
    name: str, accel: Accelerator, tmp_path: Path, works: Callable[..., None]
) -> None:
    used = build(name)
    with counting_inlined(used.files / QEMU) as counts:
        load = loads.system(used.starts / QEMU, used.starts, tmp_path, REQUESTS, "-accel", accel)
    read = read_trace(load.trace)
    check_inlined_counts(read, counts)
    if name not in NAMELESS:
        check_iothread(read.frame, load)
    works("run --all, a guest with an IOThread", events(read))


@pytest.mark.bpf
@pytest.mark.soak
@pytest.mark.parametrize("program", ["qemu-nbd", "qemu-storage-daemon"])
@each("ubuntu")
def test_every_event_of_a_server_is_there(
    name: str, program: str, tmp_path: Path, works: Callable[..., None]
) -> None:
    used = build(name)
    run = loads.nbd if program == "qemu-nbd" else loads.daemon
    with counting_inlined(used.files / program) as counts:
        load = run(used.starts / program, used.starts, tmp_path, REQUESTS)
    read = read_trace(load.trace)
    check_inlined_counts(read, counts)
    if name not in NAMELESS:
        check_load(read.frame, REQUESTS, native=False)
    works(f"run --all {program}", events(read))


@pytest.mark.soak
@each()
def test_a_scan_that_no_cache_knows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: Callable[..., None]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = build(name).files / QEMU
    command = [sys.executable, "-m", "qtrace", "scan", program, "--format", "json"]
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    report = json.loads(run.stdout)
    sites = [site for half in report["bottom_halves"] for site in half["call_sites"]]
    # A callback that is a variable, in a QEMU without names, has none.
    assert not any(half["name"] == "?" and half["callback"] for half in report["bottom_halves"])
    works("scan", f"{report['version']}: {len(report['bottom_halves'])} bottom halves at "
          f"{len(sites)} sites, {took:.1f} s of a processor")  # fmt: skip


@pytest.mark.bpf
@pytest.mark.soak
@pytest.mark.parametrize("name", ["arm"])
def test_one_for_another_machines_guests_is_recorded(
    name: str, tmp_path: Path, works: Callable[..., None]
) -> None:
    used = build(name)
    copy, qmp = own_copy(used.files / used.system, tmp_path), tmp_path / "qmp"
    command = [copy, "-M", "virt", "-S", "-nodefaults", "-display", "none",
               "-qmp", f"unix:{qmp},server=on,wait=off"]  # fmt: skip
    trace = tmp_path / "trace.parquet"
    with counting_inlined(copy) as counts, loads.recorded(trace, *command):
        wait_for(lambda: loads.answers(qmp))
        with QmpClient(qmp) as client:
            client.command("query-status")
            client.command("quit")
    read = read_trace(trace)
    rows = Counter(read.frame["event"].astype(str))
    assert rows["run"] == counts["aio_bh_call"] > 0
    assert rows["schedule"] + rows["delete"] == counts["enqueue"]
    check_ends(read, rows)
    works("run --all, a guest", events(read))


def check_inlined_counts(read: TraceFile, counts: Counter[str]) -> None:
    rows = Counter(read.frame["event"].astype(str))
    every, sites = read.detach["all"], read.header["all"]
    assert rows["run"] == counts["aio_bh_call"] > 0
    # Debian 13's aio_bh_poll() passes the probe with what was cancelled, too.
    passed = sum(site["shared"] for site in sites) * (counts["dequeue"] - rows["run"])
    assert (every["lost"], every["produced"]) == (0, sum(rows[kind] for kind in KINDS) + passed)
    check_ends(read, rows)
    assert rows["cancel"] == counts["cancel"] > 0
    assert rows["co_schedule"] == counts["aio_co_schedule"]
    assert rows["schedule"] + rows["delete"] == counts["enqueue"]


def events(read: TraceFile) -> str:
    """How many there are of each kind."""
    rows = Counter(read.frame["event"].astype(str))
    return ", ".join(f"{rows[kind]} {kind}" for kind in KINDS) + ", each as the kernel counts it"
