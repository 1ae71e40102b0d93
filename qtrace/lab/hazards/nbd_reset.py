"""QEMU aborts when a disk that is exported by NBD changes its AioContext while a client asks.

The guest resets its virtio-blk on an IOThread again and again, which moves the disk from there to
the main context and back; a client reads the disk through QEMU's own NBD server. The export follows
(blk_aio_attached()), and asserts that it has nothing of a client in hand (docs/hazards.md).
"""

from __future__ import annotations

import os
import subprocess

from qtrace.lab.hazards.hazard import Hazard, Setting, Try, Turns, until_dead
from qtrace.lab.hunt.devices import NODE
from qtrace.lab.hunt.hunt_guest import HuntGuest
from qtrace.lab.hunt.hunting import find_qemu_img

SOCKET, EXPORT = "nbd.sock", "disk"
# A whole disk is read in less.
READ_S = 10.0


def attempt(setting: Setting) -> Try:
    """Read the whole disk by NBD, again and again."""
    with setting.guest("virtio-blk", iothread=not setting.control) as guest:
        url = f"nbd+unix:///{EXPORT}?socket={SOCKET}"
        command = [find_qemu_img(), "convert", "-f", "raw", "-O", "raw", url, os.devnull]

        def turn(number: int) -> None:
            if number == 1:
                _export(guest)
            subprocess.run(command, cwd=guest.folder, capture_output=True, timeout=READ_S)
            guest.qmp.command("query-status")

        return until_dead(HAZARD, setting, guest, Turns(setting), turn)


def _export(guest: HuntGuest) -> None:
    address = {"type": "unix", "data": {"path": SOCKET}}
    guest.qmp.command("nbd-server-start", addr=address)
    export = {"type": "nbd", "id": EXPORT, "node-name": NODE, "name": EXPORT}
    guest.qmp.command("block-export-add", **export)


HAZARD = Hazard(
    name="nbd-reset",
    explanation="a guest resets a disk on an IOThread that an NBD client reads: QEMU aborts",
    control="the IOThread",
    tries=5,
    seconds=60.0,
    attempt=attempt,
    assertion="blk_aio_attached: Assertion",
)
