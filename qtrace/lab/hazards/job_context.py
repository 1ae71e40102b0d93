"""QEMU aborts when a disk leaves its IOThread while an active commit or a mirror comes to its end.

No hostile guest is needed: commit an overlay, complete the job, and stop the guest at once. Proven
by its core: job_set_aio_context() asserts that the job is paused or completed, below
vm_state_notify() of QMP stop, while job_exit is pending in `main` (docs/hazards.md).
"""

from __future__ import annotations

import time

from qtrace.errors import QmpFailed
from qtrace.lab.hazards.hazard import Hazard, Setting, Try, Turns, until_dead
from qtrace.lab.hunt.devices import NODE
from qtrace.lab.hunt.hunt_guest import HuntGuest

JOB = "commit"
END_S = 10.0


def attempt(setting: Setting) -> Try:
    """Commit, complete, stop, until QEMU is dead."""
    with setting.guest("virtio-blk-once", iothread=not setting.control) as guest:
        return until_dead(
            HAZARD, setting, guest, Turns(setting), lambda number: _turn(guest, f"overlay{number}")
        )


def _turn(guest: HuntGuest, overlay: str) -> None:
    ask = guest.qmp.command
    ask("blockdev-snapshot-sync",
        **{"node-name": NODE, "snapshot-node-name": overlay, "snapshot-file": overlay})  # fmt: skip
    ask("block-commit", **{"job-id": JOB, "device": overlay, "auto-dismiss": False})
    _await(guest, "ready")
    ask("job-complete", id=JOB)
    ask("stop")
    ask("cont")
    _await(guest, "concluded")
    ask("job-dismiss", id=JOB)
    (guest.folder / overlay).unlink()


def _await(guest: HuntGuest, status: str) -> None:
    until = time.monotonic() + END_S
    while guest.qmp.command("query-jobs")[0]["status"] != status:
        if time.monotonic() > until:
            raise QmpFailed(f"the commit does not become {status}", "qtrace inspect shows why")


HAZARD = Hazard(
    name="job-context",
    explanation="a commit that is completed, then stop: QEMU aborts where the disk has an IOThread",
    control="the IOThread",
    tries=5,
    seconds=60.0,
    attempt=attempt,
    assertion="job_set_aio_context: Assertion",
)
