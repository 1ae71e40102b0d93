"""Reads of a device return 0 when a migration is cancelled: another vCPU is inside that device.

One vCPU resets the device, which drains its requests in a nested event loop; migration_cleanup_bh()
runs in there, and gives the BQL away to join the migration thread; the other vCPU gets it, reads a
register of the same device, and memory_region_dispatch_read() refuses the re-entrant access
(docs/hazards.md). What the guest read it counts itself.
"""

from __future__ import annotations

import time

from qtrace.errors import QmpFailed
from qtrace.lab.hazards.hazard import Hazard, Setting, Try, Turns
from qtrace.lab.hunt.hunt_guest import HuntGuest
from qtrace.lab.migration_sink import MigrationSink
from qtrace.process.process import Process
from qtrace.process.qmp_client import CommandRefused

ENDED = ("completed", "failed", "cancelled")
END_S = 10.0
# Until 10.0 QEMU takes the next migration before it has cleaned up after the last one, and dies of
# it: another hazard. So its thread has to be gone (its name: "live_migration", "mig/src/main"), and
# who has joined it, to be done.
THREAD, SETTLE_S = "mig", 0.01


def attempt(setting: Setting) -> Try:
    """Begin and cancel migrations, or only let the time pass."""
    with setting.guest("virtio-blk") as guest, MigrationSink(guest.folder):
        version, turns, before = guest.qmp.version, Turns(setting), guest.results
        died, cancelled = None, 0
        try:
            while turns.go_on():
                if setting.control:
                    time.sleep(0.01)
                else:
                    cancelled += cancel_one(guest)
        except QmpFailed:
            died = guest.last_words()
            if died is None:
                raise
        after = guest.results
        wrong = (after.wrong - before.wrong) % (1 << 32)
        checked = (after.checked - before.checked) % (1 << 32)
        warnings = [line for line in guest.said if "re-entrant" in line]
        facts = {
            "reads": checked, "wrong": wrong, "value": after.first, "last_wrong": after.last_wrong,
            "said": warnings[-1] if warnings else "",
        }  # fmt: skip
        asked = f"{cancelled} migrations cancelled" if not setting.control else "no migration"
        what = f"{wrong:,} of {checked:,} reads of {after.first:#x} were wrong, {asked}"
        if wrong:
            what += f": the last gave {after.last_wrong:#x}"
        if died is not None:
            what += f"; then QEMU {died}"
        return Try(version, wrong > 0, what, turns.count, turns.seconds, facts)


def cancel_one(guest: HuntGuest) -> bool:
    """A migration, cancelled at once and seen out; whether QEMU has begun it."""
    try:
        guest.qmp.command("migrate", uri=MigrationSink.takes_all)
    except CommandRefused:
        # The last one's end is not over yet.
        time.sleep(SETTLE_S)
        return False
    guest.qmp.command("migrate_cancel")
    until = time.monotonic() + END_S
    while (status := guest.qmp.command("query-migrate")["status"]) not in ENDED:
        if time.monotonic() > until:
            raise QmpFailed(f"the migration stays {status}", "qtrace inspect shows why")
        time.sleep(0.001)
    if status == "completed":
        guest.qmp.command("cont")
    process = Process(guest.pid)
    while any(THREAD in name for name in process.threads().values()):
        if time.monotonic() > until:
            raise QmpFailed("the migration thread does not end", "qtrace inspect shows why")
        time.sleep(0.001)
    time.sleep(SETTLE_S)
    return True


HAZARD = Hazard(
    name="migrate-reads",
    explanation="reads of a device that is being reset return 0 as a migration is cancelled",
    control="the migrations",
    tries=3,
    seconds=20.0,
    attempt=attempt,
)
