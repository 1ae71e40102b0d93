"""QEMU's snapshot jobs, from the command to the dismissed job, and how long each part took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from qtrace.lab.guest import DISK
from qtrace.process.qmp_client import Message, QmpClient

NO_NODE: dict[str, Any] = {"vmstate": "nosuch", "devices": ["nosuch"]}
REAL: dict[str, Any] = {"vmstate": DISK, "devices": [DISK]}


@dataclass(frozen=True, slots=True)
class JobTimes:
    """Milliseconds from the command on, by QEMU's own clock but for the reply.

    Attributes:
        reply: until the command was answered.
        done: until the job was concluded.
        stop, resume: until the events of that name, None when there was none.
    """

    reply: float
    done: float
    stop: float | None
    resume: float | None
    error: str


def run_job(
    qmp: QmpClient, command: str, job_id: str, *, last: bool = False, **arguments: Any
) -> JobTimes:
    """Start a job, wait until it is concluded, dismiss it.

    Args:
        last: QEMU may not answer any more: leave the job, and its error, alone.

    Raises:
        QmpFailed: QEMU does not know the command, or is gone.
    """
    began = time.time()
    qmp.command(command, **{"job-id": job_id, "tag": "qtrace", **arguments})
    replied = time.time()
    concluded = {"id": job_id, "status": "concluded"}
    seen: dict[str, float] = {}
    while True:
        event = qmp.next_event()
        when = _ms(event, began)
        if event["event"] in ("STOP", "RESUME") and when >= 0:
            seen.setdefault(event["event"], when)
        elif event["event"] == "JOB_STATUS_CHANGE" and event["data"] == concluded:
            break
    error = "" if last else _dismiss(qmp, job_id)
    return JobTimes(
        reply=(replied - began) * 1000,
        done=when,
        stop=seen.get("STOP"),
        resume=seen.get("RESUME"),
        error=error,
    )


def _dismiss(qmp: QmpClient, job_id: str) -> str:
    """Returns why the job failed, empty when it did not."""
    (job,) = [job for job in qmp.command("query-jobs") if job["id"] == job_id]
    qmp.command("job-dismiss", id=job_id)
    return str(job.get("error", ""))


def save(qmp: QmpClient, job_id: str) -> JobTimes:
    """A real snapshot, deleted again."""
    times = run_job(qmp, "snapshot-save", job_id, **REAL)
    run_job(qmp, "snapshot-delete", f"{job_id}-delete", devices=[DISK])
    return times


def load_nothing(qmp: QmpClient, job_id: str) -> None:
    """A load that fails at its first check, which leaves the guest stopped: let it run on."""
    run_job(qmp, "snapshot-load", job_id, **NO_NODE)
    qmp.command("cont")


def delete_nothing(qmp: QmpClient, job_id: str) -> None:
    """A delete that fails at its first check."""
    run_job(qmp, "snapshot-delete", job_id, devices=["nosuch"])


def _ms(event: Message, began: float) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6 - began) * 1000


def save_round(qmp: QmpClient, job_id: str) -> None:
    """One snapshot-save from command to dismissed job, without a snapshot.

    No node has the name given, so ``snapshot_save_job_bh`` is scheduled and run, fails at its
    first check and leaves guest and disks alone: a round takes milliseconds.

    Raises:
        QmpFailed: QEMU does not know the command (older than 6.0) or is gone.
    """
    qmp.command("snapshot-save", **{"job-id": job_id, "tag": "qtrace", **NO_NODE})
    concluded = {"id": job_id, "status": "concluded"}
    qmp.wait_event("JOB_STATUS_CHANGE", lambda event: bool(event["data"] == concluded))
    qmp.command("job-dismiss", id=job_id)
