"""A host whose QEMUs hang, each in its own way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qtrace.lab.guest import Guest, find_qemu
from tests.live.support.dead_fuse import guest_on
from tests.live.support.hung import hung_guest
from tests.live.support.other_process import stop
from tests.live.support.serving import client_of, serving
from tests.live.support.writing import DEBUG_CONSOLE, writing_guest

# Whose disk's server is stopped.
ASKS = "asks-for-ever"
DISK = "far"


@contextmanager
def hung_host(folder: Path) -> Iterator[dict[str, int]]:
    """The pid of each QEMU, by the alert that is to be fired for it."""
    qemu = find_qemu()
    for place in ("iothread", "writes", "asks"):
        (folder / place).mkdir()
    with ExitStack() as stack:
        sleeping, file = stack.enter_context(guest_on(qemu, "tcg", folder / "iothread", "idle"))
        file.put_to_sleep(sleeping, "iothread")
        drains = stack.enter_context(hung_guest(qemu, "tcg"))
        writes = stack.enter_context(writing_guest(qemu, "tcg", folder / "writes", DEBUG_CONSOLE))
        asks = stack.enter_context(_asking(qemu, folder / "asks"))
        held = stack.enter_context(Guest(qemu, firmware="idle"))
        stop(held.pid)
        yield {
            "QemuMainLoopStuck": drains.pid, "QemuIoThreadStuck": sleeping.pid,
            "QemuBqlConvoy": writes.pid, "QemuRequestStuck": asks, "QemuHeld": held.pid,
        }  # fmt: skip


@contextmanager
def _asking(qemu: Path, folder: Path) -> Iterator[int]:
    path = folder / "nbd"
    with serving(qemu, path, "null-co,size=1048576,read-zeroes=off") as server:
        disk = (
            "-name", ASKS, "-blockdev", f"{client_of(path)},node-name={DISK}",
            "-device", f"virtio-blk-pci,drive={DISK},id=vd,cyls=2,heads=16,secs=63",
        )  # fmt: skip
        with Guest(qemu, firmware="idle", extra_args=disk) as guest:
            stop(server)
            line = 'qemu-io -d /machine/peripheral/vd/virtio-backend "aio_write 4k 512"'
            guest.qmp.command("human-monitor-command", **{"command-line": line})
            yield guest.pid
            os.kill(server, signal.SIGCONT)
