"""Samples that have every bottom half (`--all`): each takes the file to record to."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

from qtrace.experiment.reroute import Rerouting, To
from qtrace.experiment.strand import Stranding
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.block_load import bench_command, disk_image, storage_daemon
from qtrace.lab.guest import Guest
from qtrace.lab.hazards.migrate_reads import cancel_one
from qtrace.lab.hunt.devices import DEVICES
from qtrace.lab.hunt.hunt_guest import HuntGuest
from qtrace.lab.hunt.hunting import find_qemu_img, make_disks
from qtrace.lab.migration_sink import MigrationSink
from qtrace.lab.quit_hang import quit_guest, until_proven
from qtrace.lab.saves import IDLE_SOCKETS
from qtrace.lab.scenario import BOTTOM_HALF
from qtrace.lab.scenarios.vcpu_poll import ran_in_vcpu_poll
from qtrace.lab.snapshot_jobs import NO_NODE, REAL, run_job, save_round
from qtrace.process.process import Process
from qtrace.process.qmp_client import QmpClient
from qtrace.record.pump import Pump, pumped
from qtrace.record.recording_options import RecordingOptions

Make = Callable[[Path], None]

SAVES, ROUNDS, MEMORY_MIB = 5, 200, 4096
DAEMON_REQUESTS, BENCH_REQUESTS = 211, 997
DAEMON_DEPTH = 8
PUT_OFF_S, LIMIT_S, PROVEN_S = 0.5, 30.0, 3.0


def recorded(trace: Path, pid: int, **options: Any) -> AbstractContextManager[Pump]:
    """Every bottom half of a process; ``options`` are those of RecordingOptions."""
    return pumped(pid, RecordingOptions(trace, everything=True, **options), "sample ended")


def pflash(qemu: Path) -> Make:
    """A guest that writes to its flash chip, saved until chance gives a save to the vCPU thread."""

    def make(trace: Path) -> None:
        with (
            Guest(qemu, "kvm", idle_sockets=IDLE_SOCKETS) as guest,
            recorded(trace, guest.pid) as pump,
        ):
            for number in range(ROUNDS):
                save_round(guest.qmp, f"save{number}")
                if number and any(map(ran_in_vcpu_poll, pump.take())):
                    break

    return make


def qtest(qemu: Path) -> Make:
    """The same device writes by qtest, which makes them on the main thread."""

    def make(trace: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="qtrace-") as folder, socket(AF_UNIX) as server:
            server.bind(f"{folder}/qtest")
            server.listen(1)
            extra = ("-accel", "qtest", "-qtest", f"unix:{folder}/qtest")
            with Guest(qemu, firmware="idle", extra_args=extra) as guest:
                client = server.accept()[0]
                ended = threading.Event()

                def write() -> None:
                    while not ended.is_set():
                        client.sendall(b"writeb 0xfffe0000 0x40\nwriteb 0xfffe0000 0x55\n")
                        client.recv(100)

                writer = threading.Thread(target=write)
                with recorded(trace, guest.pid):
                    writer.start()
                    _saves(guest)
                    ended.set()
                    writer.join()

    return make


def stranded(qemu: Path) -> Make:
    """The mail thread's experiment: put off again and again, and stranded when QEMU quits.

    Another bottom half is watched, so that the schedules that gdb makes are recorded.
    """

    def make(trace: Path) -> None:
        with (
            Guest(qemu, firmware="idle") as guest,
            recorded(trace, guest.pid, patterns=("job_exit",), stall_after_s=0.5) as pump,
        ):
            with Stranding(LiveQemu(Process(guest.pid)), BOTTOM_HALF) as stranding:
                guest.qmp.command("snapshot-save", **{"job-id": "job", "tag": "qtrace", **NO_NODE})
                until = time.monotonic() + PUT_OFF_S
                while time.monotonic() < until:
                    stranding.poll(0.1)
                quit_guest(guest)
                limit = time.monotonic() + LIMIT_S
                # Bottom halves that are not watched get their rows at the end: gdb has to go first.
                while time.monotonic() < limit and stranding.poll(0.5):
                    pass
            until_proven(pump, time.monotonic() + PROVEN_S)

    return make


def real_save(qemu: Path, to: To | None = None) -> Make:
    """A real save of a guest with some memory, and a command from another client meanwhile."""

    def make(trace: Path) -> None:
        with (
            Guest(qemu, firmware="idle", memory_mib=MEMORY_MIB, disk=True) as guest,
            QmpClient(guest.second_qmp_socket, LIMIT_S) as second,
            recorded(trace, guest.pid),
            nullcontext()
            if to is None
            else Rerouting(LiveQemu(Process(guest.pid)), BOTTOM_HALF, to),
        ):
            asked = threading.Timer(0.03, lambda: second.command("query-status"))
            asked.start()
            run_job(guest.qmp, "snapshot-save", "save", **REAL)
            asked.join()

    return make


def bql_dropped(qemu: Path) -> Make:
    """A guest that resets a disk, and migrations that are cancelled meanwhile, until the end of one
    has run on the vCPU thread: the hazard migrate-reads, paced."""

    def make(trace: Path) -> None:
        make_disks(trace.parent, find_qemu_img())
        guest = HuntGuest(qemu, "kvm", DEVICES["virtio-blk-paced"], trace.parent)
        with (
            guest,
            MigrationSink(guest.folder),
            recorded(trace, guest.pid, qmp_socket=guest.second_qmp_socket) as pump,
        ):
            for _number in range(ROUNDS):
                cancel_one(guest)
                calls = [row for row in pump.take() if row.name == "qemu_thread_join"]
                if any(row.role == "vcpu" for row in calls):
                    break

    return make


def control(qemu: Path) -> Make:
    """Saves that the main loop runs, beside a guest that leaves its devices alone."""

    def make(trace: Path) -> None:
        with (
            Guest(qemu, firmware="idle", idle_sockets=IDLE_SOCKETS) as guest,
            recorded(trace, guest.pid),
        ):
            _saves(guest)

    return make


def idle(qemu: Path) -> Make:
    """A guest that does nothing."""

    def make(trace: Path) -> None:
        with Guest(qemu, firmware="idle") as guest, recorded(trace, guest.pid):
            time.sleep(1)

    return make


def tool(qemu: Path, *options: str) -> Make:
    """A program without a guest, from its first instruction on: nothing in it is wrong."""

    def make(trace: Path) -> None:
        disk = disk_image(trace.parent)
        command = bench_command(qemu.with_name("qemu-img"), disk, BENCH_REQUESTS, *options)
        made = trace.with_suffix(".parquet")
        subprocess.run(
            [sys.executable, "-m", "qtrace", "run", "--all", "-o", made, "--", *command],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        made.rename(trace)

    return make


def daemon(qemu: Path) -> Make:
    """A storage daemon whose IOThread serves an NBD export."""

    def make(trace: Path) -> None:
        program, disk = qemu.with_name("qemu-storage-daemon"), disk_image(trace.parent)
        with storage_daemon(program, disk, "iothread0") as (pid, url), recorded(trace, pid):
            command = bench_command(
                qemu.with_name("qemu-img"), url, DAEMON_REQUESTS, depth=DAEMON_DEPTH
            )
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return make


def _saves(guest: Guest) -> None:
    for number in range(SAVES):
        save_round(guest.qmp, f"save{number}")
