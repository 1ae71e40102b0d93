"""QEMU aborts when a guest breaks off an IDE transfer while its disk is resized.

block_resize is a coroutine: it drains the disk's node and lets the main loop go on meanwhile. What
the guest asks of the disk then is put into a queue (blk_wait_while_drained()), where no drain waits
for it; ide_cancel_dma_sync() drains, and asserts that nothing is left (docs/hazards.md).
"""

from __future__ import annotations

import shutil

from qtrace.lab.hazards.hazard import Hazard, Setting, Try, Turns, until_dead
from qtrace.lab.hunt.devices import NODE
from qtrace.lab.hunt.hunt_guest import DISK_FILE
from qtrace.lab.hunt.qmp_turns import DISK_MIB, MIB

OTHER, OTHER_FILE = "other", "other.qcow2"


def attempt(setting: Setting) -> Try:
    """Resize the disk again and again; in the control another one that no device has."""
    with setting.guest("ide") as guest:
        ask, node = guest.qmp.command, NODE
        if setting.control:
            shutil.copyfile(setting.files / DISK_FILE, guest.folder / OTHER_FILE)
            node, file = OTHER, {"driver": "file", "filename": OTHER_FILE}
            ask("blockdev-add", **{"driver": "qcow2", "node-name": node, "file": file})

        def turn(number: int) -> None:
            ask("block_resize", **{"node-name": node, "size": (DISK_MIB + number % 2) * MIB})

        return until_dead(HAZARD, setting, guest, Turns(setting), turn)


HAZARD = Hazard(
    name="ide-resize",
    explanation="block_resize while the guest breaks off IDE transfers: QEMU aborts",
    control="a resize of the guest's own disk (another one is resized)",
    tries=5,
    seconds=60.0,
    attempt=attempt,
    assertion="ide_cancel_dma_sync: Assertion",
)
