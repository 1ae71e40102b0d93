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
from qtrace.lab.guest import Accelerator, Guest
from qtrace.lab.snapshot_jobs import save_round
from qtrace.process.process import Process
from qtrace.process.qmp_client import QmpClient
from tests.conftest import version

pytestmark = [pytest.mark.qemu, pytest.mark.soak]

LOOKS = 200
# Requests of one run of the benchmark beside the looks; it is begun anew until they are over.
REQUESTS = 50_000
FOR_EVER = 1 << 30

Stir = Callable[[QmpClient, int], None]


def save(qmp: QmpClient, number: int) -> None:
    save_round(qmp, f"save{number}")


def boot(qmp: QmpClient, _number: int) -> None:
    """The firmware begins anew, and so do all devices."""
    qmp.command("system_reset")


def migrate(qmp: QmpClient, _number: int) -> None:
    qmp.command("migrate", uri="exec:cat > /dev/null")
    while qmp.command("query-migrate").get("status") not in ("completed", "failed"):
        pass
    qmp.command("cont")


def mirror(qmp: QmpClient, number: int) -> None:
    job = f"mi{number}"
    qmp.command(
        "blockdev-mirror", **{"job-id": job, "device": "source", "target": "target", "sync": "full"}
    )
    while any(one["status"] != "ready" for one in qmp.command("query-jobs")):
        pass
    qmp.command("block-job-cancel", device=job)
    while qmp.command("query-jobs"):
        pass


def write_slowly(qmp: QmpClient, number: int) -> None:
    """More than the limits let pass: the rest waits, and is waited for."""
    for part in range(8):
        line = f'qemu-io slow "aio_write {part * 64}k 64k"'
        qmp.command("human-monitor-command", **{"command-line": line})
    qmp.command("human-monitor-command", **{"command-line": 'qemu-io slow "aio_flush"'})


STIRS: dict[str, Stir | None] = {
    "idle": None, "pflash": None, "boots": boot, "migrates": migrate, "saves": save,
    "mirrors": mirror, "throttles": write_slowly,
}  # fmt: skip
DISKS = (
    "-blockdev", "null-co,node-name=source,size=16777216,read-zeroes=off",
    "-blockdev", "null-co,node-name=target,size=16777216,read-zeroes=off,latency-ns=1000000",
    "-drive", "if=none,id=slow,file=null-co://,format=raw,throttling.bps-total=1048576",
)  # fmt: skip


@pytest.mark.parametrize("state", STIRS)
def test_200_looks_at_a_sound_guest_accuse_nobody(
    qemu_binary: Path, accel: Accelerator, state: str, soak_row: Callable[..., None]
) -> None:
    firmware = "idle" if state == "idle" else "pflash"
    with (
        Guest(qemu_binary, accel, firmware=firmware, extra_args=DISKS) as guest,
        stirred(guest, STIRS[state]),
    ):
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
def stirred(guest: Guest, stir: Stir | None) -> Iterator[None]:
    """Something that is done to a guest again and again."""
    if stir is None:
        yield
        return
    over = threading.Event()

    def go_on() -> None:
        with QmpClient(guest.second_qmp_socket, timeout_s=60) as qmp:
            number = 0
            while not over.is_set():
                stir(qmp, number)
                number += 1

    worker = threading.Thread(target=go_on)
    worker.start()
    try:
        yield
        assert worker.is_alive(), f"{stir.__name__} has failed"
    finally:
        over.set()
        worker.join()


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
