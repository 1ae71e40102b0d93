"""Coroutines that run, and threads that are in one: whose stack is whose."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Accelerator, Guest
from qtrace.machine.ptrace import DETACH, INTERRUPT, SEIZE, get_registers, ptrace, wait_stop
from qtrace.process.live_source import LiveSource
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S
from tests.live.support.gdb_cases import everywhere
from tests.live.support.gdb_session import core_of, gdb, live
from tests.live.support.hung import guest_with_sleeping_job
from tests.live.support.inspecting import functions, in_words, inspect, thread
from tests.live.support.luks_job import ARGUMENTS, LuksJob

pytestmark = pytest.mark.qemu

# Longer than any test: the key's derivation is measured to take this many milliseconds.
FOR_EVER_MS = 300_000
JOB = "luks"


@contextmanager
def guest_with_running_job(qemu: Path) -> Iterator[Guest]:
    """A guest whose main thread computes for ever, in the coroutine of the job ``luks``.

    (It has waited before for a thread that measured how quick this machine is.)
    """
    with (
        Guest(qemu, "tcg", "idle", extra_args=ARGUMENTS) as guest,
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        began = _cpu_s(guest.pid)
        job = LuksJob(guest, qmp, JOB, FOR_EVER_MS)

        def computes() -> bool:
            job.go_on()
            return _cpu_s(guest.pid) > began + 1

        _until(computes, "the computation")
        yield guest


@contextmanager
def main_in_coroutine(qemu: Path, accel: Accelerator) -> Iterator[Guest]:
    """A guest whose main thread sleeps in open(2) of a FIFO, in the coroutine of a QMP command."""
    display = ("-device", "bochs-display,romfile=")
    with Guest(qemu, accel, "idle", extra_args=display) as guest:
        fifo = guest.folder / "fifo"
        os.mkfifo(fifo)
        looker = Looker(LiveQemu(Process(guest.pid)))
        with asked(guest, "screendump", filename=str(fifo)):
            _until(lambda: "qmp_screendump" in looker.thread(guest.pid, "").functions, "the open")
            yield guest


@contextmanager
def asked(guest: Guest, command: str, **arguments: object) -> Iterator[None]:
    """A QMP command is given, and its answer not waited for."""
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"}')
        qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        yield


def _cpu_s(tid: int) -> float:
    """The processor time that a thread has used."""
    return int(Path(f"/proc/{tid}/task/{tid}/schedstat").read_text().split()[0]) / 1e9


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)


@pytest.mark.gdb
def test_a_coroutine_that_runs_is_not_unwound_from_where_it_last_slept(
    qemu_binary: Path, tmp_path: Path
) -> None:
    with guest_with_running_job(qemu_binary) as guest:
        pid = guest.pid
        documents = [inspect("--pid", pid)[1]]
        words = in_words("--pid", pid)
        address = documents[0]["jobs"][0]["co"]
        said = gdb(live(pid, qemu_binary), "aio jobs", f"aio coroutine {address}").splitlines()
        target = core_of(pid, qemu_binary, tmp_path)
    documents.append(inspect("--core", target.arguments[1])[1])
    for document in documents:
        (job,) = document["jobs"]
        assert (job["id"], job["awake"], job["tid"], job["stack"]) == (JOB, True, pid, [])
    assert thread(documents[0], pid)["stack"] == []
    assert f"coroutine {address}, which runs now in thread {pid} (main)" in " ".join(words.split())
    assert said[0].endswith(f"coroutine {address}  runs now in thread {pid}")
    assert f"coroutine {address} is awake: thread {pid} is in it" in said[1]


@everywhere
def test_a_coroutine_that_sleeps_belongs_to_no_thread(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with guest_with_sleeping_job(qemu_binary, accel) as guest:
        document = inspect("--pid", guest.pid)[1]
    (job,) = document["jobs"]
    assert (job["awake"], job["tid"]) == (False, None)
    assert "job_yield" in functions(job["stack"])


@everywhere
def test_the_stack_of_main_in_a_coroutine_is_whole(qemu_binary: Path, accel: Accelerator) -> None:
    with main_in_coroutine(qemu_binary, accel) as guest:
        document = inspect("--pid", guest.pid)[1]
    main = thread(document, guest.pid)
    assert main["complete"]
    # Its own frames, and below them those of the loop that entered the coroutine.
    stack = functions(main["stack"])
    assert "qmp_screendump" in stack
    assert stack.index("qmp_screendump") < stack.index("main_loop_wait")


@everywhere
def test_every_threads_descriptor_is_where_its_register_points(
    qemu_binary: Path, accel: Accelerator
) -> None:
    with main_in_coroutine(qemu_binary, accel) as guest:
        source = LiveSource(Process(guest.pid))
        threads = [tid for tid in source.threads() if not source.state(tid).kernel]
        found = source.thread_pointers()
        assert found == {tid: _fs_base(tid) for tid in threads}


def _fs_base(tid: int) -> int:
    ptrace(SEIZE, tid)
    try:
        ptrace(INTERRUPT, tid)
        wait_stop(tid, TIMEOUT_S)
        return get_registers(tid)["fs_base"]
    finally:
        ptrace(DETACH, tid)
