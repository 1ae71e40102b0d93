"""What is done to a sound guest again and again, so that it is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qtrace.lab.guest import Accelerator, Firmware, Guest
from qtrace.lab.snapshot_jobs import save_round
from qtrace.process.qmp_client import CommandRefused, QmpClient

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
    while True:
        # It is told to be completed before it is at its end.
        with suppress(CommandRefused):
            qmp.command("cont")
            return


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


@contextmanager
def sound_guest(qemu: Path, accel: Accelerator, state: str) -> Iterator[Guest]:
    """A guest of which nothing is to be said, in one of the states of ``STIRS``."""
    firmware: Firmware = "idle" if state == "idle" else "pflash"
    with (
        Guest(qemu, accel, firmware=firmware, extra_args=DISKS) as guest,
        stirred(guest, STIRS[state]),
    ):
        yield guest


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
