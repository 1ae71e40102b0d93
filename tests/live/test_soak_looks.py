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

from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import prove
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


STIRS: dict[str, Stir | None] = {
    "idle": None, "pflash": None, "boots": boot, "migrates": migrate, "saves": save,
}  # fmt: skip


@pytest.mark.parametrize("state", STIRS)
def test_200_looks_at_a_sound_guest_accuse_nobody(
    qemu_binary: Path, accel: Accelerator, state: str, soak_row: Callable[..., None]
) -> None:
    firmware = "idle" if state == "idle" else "pflash"
    with Guest(qemu_binary, accel, firmware=firmware) as guest, stirred(guest, STIRS[state]):
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


def check(pid: int, soak_row: Callable[..., None]) -> None:
    looker = Looker(LiveQemu(Process(pid)))
    said: Counter[str] = Counter()
    for _ in range(LOOKS):
        proof = prove(looker, looker.look())
        assert proof.findings == [], [finding.sentence for finding in proof.findings]
        said["inconclusive" if proof.reasons else "clear"] += 1
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
