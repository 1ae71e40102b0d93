"""Hangs in which the main thread polls nothing: it waits for the BQL, or for its vCPUs.

All on stock QEMUs. A throttled flash chip keeps a vCPU thread inside the aio_poll() of one device
write, with the BQL; and QEMU 7.2 told to quit under such writes hangs by itself, about one time
in three.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.errors import NoSuchProcess
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from qtrace.qemu.aio.findings import confirm
from qtrace.qemu.aio.model import Look
from qtrace.qemu.aio.waits import BIG_LOCK
from tests.conftest import version
from tests.limits import TIMEOUT_S
from tests.live.support.attached import attached, watched_half
from tests.live.support.gdb_cases import STRANDED, everywhere
from tests.live.support.gdb_session import gdb, live
from tests.live.support.hung import functions_of_main_thread, guest_with_sleeping_job
from tests.live.support.inspecting import functions, in_words, inspect, thread
from tests.live.support.pausing import paused_behind_a_console, paused_behind_a_write

pytestmark = pytest.mark.qemu

# A byte per second; each of the guest's writes is one of 512.
FOR_EVER = 1
GUESTS = 25


@pytest.mark.gdb
@everywhere
def test_a_vcpu_that_polls_for_its_write_keeps_the_big_lock_from_the_main_loop(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with Guest(qemu_binary, accel) as guest, commands(guest) as send:
        (cpu,) = guest.qmp.command("query-cpus-fast")
        tid = cpu["thread-id"]
        throttle(send, FOR_EVER)
        looker = Looker(LiveQemu(Process(guest.pid)))
        wait_for(looker, lambda look: waits_for_lock(look) and polls(look, tid))
        status, document, _err = inspect("--pid", guest.pid)
        held = inspect("--pid", guest.pid, "--gdb")
        words = in_words("--pid", guest.pid)
        said = gdb(live(guest.pid, qemu_binary), "aio threads", "aio why")
    assert status == 1
    finding = next(f for f in document["findings"] if f["tid"] == guest.pid)
    assert (finding["verdict"], finding["role"], finding["polls"]) == ("stuck", "main", None)
    # What slept has run since it was held: that it stays is shown by looks after that.
    assert held[0] == 1
    assert guest.pid in [f["tid"] for f in held[1]["findings"]]
    # Of several QMP commands one may have been left behind, and wait in the queue.
    sentence = finding["sentence"].partition("; behind it wait ")[0]
    assert f"{guest.pid} (main)" in sentence
    assert " waits in main_loop_wait < qemu_main_loop, for the BQL of " in sentence
    assert f", for the BQL of {tid} (CPU 0/{accel.upper()}), which waits in blk_pwrite" in sentence
    # gdb's commands do not tell the device.
    told, _, device = sentence.partition(", for device ")
    assert told.endswith(", polling `main`, holding the BQL")
    assert device.startswith("cfi.pflash01 ")
    assert "same waiting frames" in finding["proof"]
    assert document["bql"] == {"known": True, "holder": tid}
    vcpu = thread(document, tid)
    assert (vcpu["role"], vcpu["blocked_in"]) == ("vcpu", "ppoll")
    assert [poll["context"] for poll in vcpu["polls"]] == ["main"]
    assert {"aio_poll", "blk_pwrite"} <= set(functions(vcpu["stack"]))
    assert sentence in words
    assert f"BQL: held by {tid} (CPU 0/{accel.upper()})" in words
    (row,) = [line for line in said.splitlines() if line.startswith(f"{tid} ")]
    assert " vcpu " in row
    assert " holds " in row
    assert told in said


@everywhere
def test_a_main_thread_that_polls_for_ever_is_stuck_with_nothing_pending(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with guest_with_sleeping_job(qemu_binary, accel) as guest:
        # As by kill(1): no QMP command is left behind.
        os.kill(guest.pid, signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT_S
        while "bdrv_drain_all_begin" not in functions_of_main_thread(guest.pid):
            assert time.monotonic() < deadline, "QEMU does not hang in its shutdown"
            time.sleep(0.01)
        status, document, _err = inspect("--pid", guest.pid)
    (finding,) = document["findings"]
    assert (status, finding["verdict"], finding["bottom_halves"]) == (1, "stuck", [])
    assert (finding["tid"], finding["polls"]) == (guest.pid, "main")
    assert {"bdrv_drain_all_begin", "qemu_cleanup"} <= set(finding["waits_in"])


@pytest.mark.bpf
@pytest.mark.kvm
def test_a_qemu_that_hangs_when_told_to_quit_is_judged() -> None:
    """main waits in pause_all_vcpus() for a vCPU thread that polls for a device's write."""
    qemu = find_qemu()
    if version(str(qemu)) != "7.2":
        pytest.skip("only 7.2 is known to hang so by itself")
    with hung_in_quit(qemu) as guest:
        status, document, _err = inspect("--pid", guest.pid)
        with attached(guest.pid, "--duration", "1500ms") as attach:
            judged, report, err = attach.result()
    assert (status, document["verdict"]) == (1, "stuck")
    finding = document["findings"][0]
    assert STRANDED in finding["bottom_halves"]
    assert f"{guest.pid} (main) waits in pause_all_vcpus < vm_shutdown" in finding["sentence"]
    assert ", for vCPU thread " in finding["sentence"]
    assert "polling `main`, holding the BQL, for device cfi.pflash01 " in finding["sentence"]
    assert "; behind it wait " in finding["sentence"]
    assert judged == 1
    (recorded,) = watched_half(report, STRANDED)["findings"]
    assert recorded["verdict"] == "stranded"
    assert "pause_all_vcpus" in recorded["stack"]
    (stuck,) = report["stuck"]
    assert (report["verdict"], stuck["tid"]) == ("stuck", guest.pid)
    # How long requests are in flight depends on when it is told.
    assert f"warning: {stuck['sentence'].partition('; in flight')[0]}" in err


@everywhere
def test_main_in_pause_all_vcpus_behind_a_vcpu_that_polls_is_explained(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with paused_behind_a_write(qemu_binary, accel) as (guest, tid):
        status, document, _err = inspect("--pid", guest.pid)
        # The test itself traces some of its threads.
        held = inspect("--pid", guest.pid, "--gdb")
    assert status == 1
    assert (held[0], held[1]["verdict"]) == (1, "stuck")
    (finding,) = document["findings"]
    sentence = finding["sentence"]
    assert (finding["verdict"], finding["tid"], finding["polls"]) == ("stuck", guest.pid, None)
    assert "(main) waits in pause_all_vcpus < " in sentence
    assert f", for vCPU thread {tid} (CPU 0/{accel.upper()}), which waits in blk_" in sentence
    assert "polling `main`, holding the BQL, for device cfi.pflash01 " in sentence
    assert "same waiting frames" in finding["proof"]
    assert document["bql"] == {"known": True, "holder": tid}


@everywhere
def test_main_in_pause_all_vcpus_names_a_vcpu_that_runs_and_does_not_stop(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    """It tries to write into a full pipe again and again, so that it moves all the time."""
    with paused_behind_a_console(qemu_binary, accel, tmp_path) as (guest, tid):
        status, document, _err = inspect("--pid", guest.pid)
    (finding,) = document["findings"]
    sentence = finding["sentence"]
    assert (status, finding["verdict"], finding["tid"]) == (1, "stuck", guest.pid)
    assert "(main) waits in pause_all_vcpus < " in sentence
    assert f", for vCPU thread {tid} (CPU 0/{accel.upper()}), which " in sentence
    assert "qemu_chr_write" in sentence
    assert ", for device isa-debugcon /machine/peripheral-anon/device[" in sentence
    assert f"pipe {tmp_path}/console" in sentence
    assert f", whose read end is held by process {os.getpid()} (" in sentence
    assert finding["at_least_ns"] >= 2_000_000_000


def waits_for_lock(look: Look) -> bool:
    return any(BIG_LOCK.intersection(t.functions) for t in look.threads if t.role == "main")


def polls(look: Look, tid: int) -> bool:
    found = look.thread(tid)
    return found is not None and bool(found.polls) and bool(found.blocked_in)


def wait_for(looker: Looker, condition: Callable[[Look], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition(looker.look()):
        assert time.monotonic() < deadline, "it does not hang"
        time.sleep(0.01)


def throttle(send: Callable[..., None], bytes_per_second: int) -> None:
    limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
    send("block_set_io_throttle", device="pflash1", bps_wr=bytes_per_second, **limits)


@contextmanager
def commands(guest: Guest) -> Iterator[Callable[..., None]]:
    """Sends QMP commands without waiting for an answer, which may never come.

    The monitor stays open until the end: a closed one forgets what it was told.
    """
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"}')

        def send(command: str, **arguments: object) -> None:
            qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())

        yield send


@contextmanager
def hung_in_quit(qemu: Path) -> Iterator[Guest]:
    """The first of several guests that does not end when it is told to."""
    for _guest in range(GUESTS):
        with Guest(qemu) as guest, commands(guest) as send:
            looker = Looker(LiveQemu(Process(guest.pid)))
            (cpu,) = guest.qmp.command("query-cpus-fast")
            send("quit")
            deadline = time.monotonic() + 5
            before: Look | None = None
            while guest.alive and time.monotonic() < deadline:
                try:
                    look = looker.look()
                except NoSuchProcess:
                    break
                pausing = "pause_all_vcpus" in look.threads[0].functions
                if not pausing or not polls(look, cpu["thread-id"]):
                    before = None
                elif before is None:
                    before = look
                elif look.time_ns - before.time_ns > 1e9 and confirm(before, look):
                    yield guest
                    return
                time.sleep(0.02)
    pytest.fail(f"none of {GUESTS} QEMUs hung")
