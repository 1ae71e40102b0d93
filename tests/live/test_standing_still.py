"""A guest that stands still though no loop and no block request of its QEMU's is stuck: a page of
its memory does not come, as whoever serves the file that it lies in is stopped."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.inspection import outside
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.surroundings import LONG_SLEEP_NS, late_vcpus
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S
from tests.live.support.counted import own_copy
from tests.live.support.dead_fuse import DeadFile, fuse_file, threads_in_fuse
from tests.live.support.gdb_cases import everywhere
from tests.live.support.hung import functions_of_main_thread
from tests.live.support.inspecting import inspect
from tests.live.support.ptraced import until
from tests.live.support.writing import firmware_with

pytestmark = [pytest.mark.qemu, pytest.mark.fuse]

MEMORY_MIB = 64
# mov ax, 0x5000; mov ds, ax; mov [0], al; hlt; jmp to the hlt: nothing else touches that page.
TOUCH = b"\xb8\x00\x50\x8e\xd8\xa2\x00\x00\xf4\xeb\xfd"


class Touching(Guest):
    """Its guest touches one page."""

    def _image(self) -> bytes:
        return firmware_with(TOUCH)


@contextmanager
def waiting_for_a_page(
    qemu: Path, accel: Accelerator, folder: Path
) -> Iterator[tuple[Guest, DeadFile]]:
    size = MEMORY_MIB << 20
    # Of a file of its own: its memory map is locked, and nobody sets a probe in such a program.
    qemu = own_copy(qemu, folder)
    with fuse_file(folder, size) as file:
        memory = f"memory-backend-file,id=ram,size={size},mem-path={file.path},share=off"
        arguments = ("-S", "-object", memory, "-machine", "memory-backend=ram")
        with Touching(qemu, accel, "idle", extra_args=arguments, memory_mib=MEMORY_MIB) as guest:
            try:
                file.freeze()
                guest.qmp.command("cont")
                until(lambda: threads_in_fuse(guest.pid), "the page fault")
                yield guest, file
            finally:
                file.thaw()


@contextmanager
def asking(guest: Guest, command: str, arguments: dict[str, str]) -> Iterator[None]:
    """A QMP command, without waiting for its reply."""
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(guest.second_qmp_socket))
        asked = {"execute": command, "arguments": arguments}
        qmp.sendall(b'{"execute":"qmp_capabilities"}' + json.dumps(asked).encode())
        yield


@everywhere
def test_a_vcpu_whose_page_does_not_come_is_told_with_whoever_serves_the_file(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    with waiting_for_a_page(qemu_binary, accel, tmp_path) as (guest, file):
        (tid,) = threads_in_fuse(guest.pid)
        until(
            lambda: any(
                " has not run for " in one for one in inspect("--pid", guest.pid)[1]["remarks"]
            ),
            "half a second",
        )
        status, document, _err = inspect("--pid", guest.pid)
        checked = subprocess.run(
            [sys.executable, "-m", "qtrace", "check", "--pid", str(guest.pid), "--format", "json"],
            text=True, capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        served = f"served by process {file.pid} (qemu-storage-da), stopped by a signal (SIGSTOP)"
        label = f"{tid} (CPU 0/{accel.upper()})"
        (told,) = [one for one in document["remarks"] if one.startswith(f"vCPU thread {label} ")]
        assert (status, document["verdict"]) == (0, "clear")
        assert "it is in a page fault (" in told
        assert f", perhaps in {file.path}, on fuse " in told
        assert served in told
        # Nobody's guest waits for five seconds for a page.
        found = json.loads(checked.stdout)
        assert (checked.returncode, found["verdict"]) == (1, "slow")
        (noted,) = found["noted"]
        assert noted["tid"] == tid
        assert noted["lasted_ns"] >= 5_000_000_000
        assert served in noted["sentence"]


def test_who_has_not_run_since_an_earlier_look_is_told_where_the_scheduler_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a crowded host it may not be asked in time."""
    monkeypatch.setattr(outside, "asleep_since_ns", lambda *_: None)
    with waiting_for_a_page(find_qemu(), "kvm", tmp_path) as (guest, _file):
        (tid,) = threads_in_fuse(guest.pid)
        looker = Looker(LiveQemu(Process(guest.pid)))
        first = now = looker.look()
        while now.time_ns - first.time_ns < LONG_SLEEP_NS:
            now = looker.look()
        assert late_vcpus(looker, now) == []
        ((thread, lasted_ns, text),) = late_vcpus(looker, now, first)
    assert (thread.tid, lasted_ns) == (tid, now.time_ns - first.time_ns)
    assert " has not run for at least " in text


@everywhere
def test_main_that_waits_for_such_a_vcpu_to_stop_is_stuck(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    with waiting_for_a_page(qemu_binary, accel, tmp_path) as (guest, file):
        (tid,) = threads_in_fuse(guest.pid)
        file.ask(guest, "stop")
        until(lambda: "pause_all_vcpus" in functions_of_main_thread(guest.pid), "the hang")
        status, document, _err = inspect("--pid", guest.pid)
    (finding,) = document["findings"]
    assert (status, finding["verdict"], finding["tid"]) == (1, "stuck", guest.pid)
    assert "(main), in QMP stop, waits in pause_all_vcpus < " in finding["sentence"]
    where = f", for vCPU thread {tid} (CPU 0/{accel.upper()}), which is in a page fault ("
    assert where in finding["sentence"]
    assert f"process {file.pid} (qemu-storage-da), stopped by a signal" in finding["sentence"]


def test_main_that_asks_such_a_vcpu_for_its_registers_is_stuck(
    qemu_binary: Path, tmp_path: Path
) -> None:
    """KVM has them: the vCPU's own thread must fetch them."""
    with waiting_for_a_page(qemu_binary, "kvm", tmp_path) as (guest, file):
        (tid,) = threads_in_fuse(guest.pid)
        line = {"command-line": "info registers"}
        with asking(guest, "human-monitor-command", line):
            until(lambda: "do_run_on_cpu" in functions_of_main_thread(guest.pid), "the hang")
            status, document, _err = inspect("--pid", guest.pid)
    (finding,) = document["findings"]
    assert (status, finding["verdict"], finding["tid"]) == (1, "stuck", guest.pid)
    sentence = finding["sentence"]
    assert ", waits in do_run_on_cpu < " in sentence
    assert f", for vCPU thread {tid} (CPU 0/KVM), which is in a page fault (" in sentence
    assert f"process {file.pid} (qemu-storage-da), stopped by a signal" in sentence


def test_main_that_waits_for_rcu_is_stuck_for_a_vcpu_that_reads(
    qemu_binary: Path, tmp_path: Path
) -> None:
    """TCG's vCPU threads read under RCU while their guest runs."""
    with waiting_for_a_page(qemu_binary, "tcg", tmp_path) as (guest, file):
        (tid,) = threads_in_fuse(guest.pid)
        with asking(guest, "device_add", {"driver": "virtio-rng-pci", "rng": "x"}):
            until(lambda: "drain_call_rcu" in functions_of_main_thread(guest.pid), "the hang")
            status, document, _err = inspect("--pid", guest.pid)
    (finding,) = document["findings"]
    assert (status, finding["verdict"], finding["tid"]) == (1, "stuck", guest.pid)
    sentence = finding["sentence"]
    assert "(main), in QMP device_add, waits in drain_call_rcu < qmp_device_add < " in sentence
    assert ", which waits in synchronize_rcu < call_rcu_thread, for the RCU reader " in sentence
    assert f" for the RCU reader {tid} (CPU 0/TCG), which is in a page fault (" in sentence
    assert f"process {file.pid} (qemu-storage-da), stopped by a signal" in sentence
