"""Hundreds of looks at sound QEMUs under every kind of load: none may be accused.

Each look goes to its end, as `qtrace inspect` goes: what one look suspects is watched until it is
proven or over.
"""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.inspection.inspector import Inspector
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.block_load import bench_command, disk_image, storage_daemon
from qtrace.lab.guest import Accelerator
from qtrace.process.process import Process
from tests.conftest import version
from tests.live.support.stirring import STIRS, sound_guest

pytestmark = [pytest.mark.qemu, pytest.mark.soak]

LOOKS = 200
# Requests of one run of the benchmark beside the looks; it is begun anew until they are over.
REQUESTS = 50_000
FOR_EVER = 1 << 30


@pytest.mark.parametrize("state", STIRS)
def test_200_looks_at_a_sound_guest_accuse_nobody(
    qemu_binary: Path, accel: Accelerator, state: str, soak_row: Callable[..., None]
) -> None:
    with sound_guest(qemu_binary, accel, state) as guest:
        check(guest.pid, soak_row)


@pytest.mark.parametrize("iothread", [None, "io0"], ids=["main", "iothread"])
def test_200_looks_at_a_busy_storage_daemon_accuse_nobody(
    qemu_binary: Path, iothread: str | None, tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    if iothread and version(str(qemu_binary)).startswith("7."):
        pytest.skip("before 8.0 QEMU aborts when the client of an IOThread's export goes away")
    disk = disk_image(tmp_path)
    program = qemu_binary.with_name("qemu-storage-daemon")
    with storage_daemon(program, disk, iothread) as (pid, url), benched(qemu_binary, url):
        check(pid, soak_row)


def test_200_looks_at_a_busy_client_accuse_nobody(
    qemu_binary: Path, tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    program = qemu_binary.with_name("qemu-storage-daemon")
    with storage_daemon(program, disk_image(tmp_path)) as (_pid, url):
        command = bench_command(qemu_binary.with_name("qemu-img"), url, FOR_EVER)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
            try:
                check(client.pid, soak_row)
                assert client.poll() is None
            finally:
                client.kill()


def check(pid: int, soak_row: Callable[..., None]) -> None:
    inspector = Inspector(Looker(LiveQemu(Process(pid))))
    said: Counter[str] = Counter()
    for _ in range(LOOKS):
        answer = inspector.ask().answer
        assert answer.findings == (), [finding.sentence for finding in answer.findings]
        said["inconclusive" if answer.reasons else "clear"] += 1
    # Of a main thread that is only ever seen to wait for the BQL, as beside a vCPU that writes to
    # flash without a pause, it is not known whether it gets it.
    shown = f"0 findings, {said['clear']} clear, {said['inconclusive']} inconclusive"
    soak_row(f"{LOOKS} looks at a sound QEMU", shown)


@contextmanager
def benched(qemu: Path, url: str) -> Iterator[None]:
    over = threading.Event()
    command = bench_command(qemu.with_name("qemu-img"), url, REQUESTS)

    def go_on() -> None:
        while not over.is_set():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    worker = threading.Thread(target=go_on)
    worker.start()
    try:
        yield
        assert worker.is_alive(), "the benchmark has failed"
    finally:
        over.set()
        worker.join()
