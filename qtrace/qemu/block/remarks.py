"""Where nothing is stuck: what else may keep a guest, or a user, waiting. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qtrace.qemu.aio.model import Look
from qtrace.qemu.aio.waits import in_words
from qtrace.qemu.block.block_model import BlockLook
from qtrace.qemu.block.coroutine_waits import THROTTLED
from qtrace.qemu.block.requests import InFlight, in_flight

# QMP's RunState: who lets the guest go on.
PAUSED = {
    "paused": "the guest is paused, by a user, a management program or a debugger: QMP cont lets "
              "it go on",
    "io-error": "the guest is paused because a disk had an error: QMP query-block tells which, "
                "cont tries again",
    "prelaunch": "the guest has not been started (-S): QMP cont starts it",
    "inmigrate": "the guest waits for its incoming migration",
    "postmigrate": "the guest has been migrated away",
    "finish-migrate": "the guest is stopped for the end of its migration",
    "restore-vm": "the guest is stopped while a snapshot is loaded",
    # dump_init() in dump/dump.c stops it so, too.
    "save-vm": "the guest is stopped while a snapshot is saved, or its memory is dumped",
    "suspended": "the guest has suspended itself (S3): QMP system_wakeup wakes it",
    "watchdog": "the guest's watchdog has stopped it",
    "guest-panicked": "the guest has panicked, and is stopped",
    "internal-error": "the guest is stopped by an internal error of the accelerator",
    "shutdown": "the guest has shut down, and QEMU was told to stay (-no-shutdown)",
    "colo": "the guest waits for COLO",
    "debug": "a debugger that is connected to QEMU's gdbstub has stopped the guest",
}  # fmt: skip
RUNNING, SAVING = "running", "save-vm"
# Those in which no command has stopped it.
FAULTS = frozenset({"io-error", "internal-error", "guest-panicked", "watchdog"})
# QMP's MigrationStatus of one that goes on, or waits for somebody.
NOT_MIGRATING = frozenset({"", "none", "completed", "failed", "cancelled"})
# QAPI's JobStatus of jobs that wait for a command.
ENDED = frozenset({"aborting", "concluded", "null"})
BLOCK_JOBS = frozenset({"backup", "commit", "mirror", "stream"})
JOBS_WAIT = {
    "ready": "is ready, and waits for job-complete or job-cancel",
    "pending": "is pending, and waits for job-finalize",
    "concluded": "has concluded, and waits for job-dismiss",
}


def throttled(look: BlockLook) -> dict[str, list[InFlight]]:
    """What the queues of throttle groups hold back, by the group's name."""
    found: dict[str, list[InFlight]] = {}
    for one in in_flight(look):
        if one.wait.kind == THROTTLED:
            found.setdefault(one.co.group if one.co else "", []).append(one)
    return found


def remarks(look: Look, blocks: BlockLook, waits: Mapping[str, str]) -> Iterator[str]:
    """What is no finding, and tells where to look instead, in words.

    Args:
        waits: by job's id what it waits for, where that shows.
    """
    for group, held in throttled(blocks).items():
        one = len(held) == 1
        name = f" {group}" if group else ""
        count = f"{len(held)} request{'' if one else 's'} {'is' if one else 'are'}"
        yield f"{count} throttled, by throttle group{name}: its limits let no more pass now"
    if blocks.run_state not in ("", RUNNING):
        unknown = f"the guest does not run: its state is {blocks.run_state}"
        why = _waits_of(look, "other") if blocks.run_state == SAVING else ""
        yield PAUSED.get(blocks.run_state, unknown) + why
    if blocks.migration not in NOT_MIGRATING:
        yield f"the migration is {blocks.migration}{_waits_of(look, 'migration')}"
    for backend in blocks.backends or ():
        if backend.iostatus not in ("", "ok"):
            yield f"{backend.label or 'a disk'} has the I/O status {backend.iostatus}"
    for job in look.jobs or ():
        facts = blocks.jobs.get(job.address)
        if not job.id:
            continue
        if facts is not None and facts.cancelled and job.status not in ENDED:
            own = waits.get(job.id)
            yield f"job {job.id} is cancelled, and has not ended" + (f": {own}" if own else "")
        elif job.status in JOBS_WAIT:
            yield f"job {job.id} {JOBS_WAIT[job.status]}"
        elif facts is not None and facts.user_paused:
            yield f"job {job.id} was paused by a user: job-resume lets it go on"
        elif job.kind in BLOCK_JOBS and job.status == "running" and job.id not in waits:
            # A job that keeps to its speed limit looks no different from one that is forgotten.
            yield (
                f"job {job.id} runs, with no request in flight at this moment: query-block-jobs"
                " tells its speed limit, and whether it goes on"
            )


def migrating(look: Look) -> set[int]:
    """The threads of a migration that sleep: whom they wait for is to be looked up."""
    return {t.tid for t in look.threads if t.role == "migration" and t.blocked_in}


def _waits_of(look: Look, role: str) -> str:
    """What the threads of a role wait for outside, as far as that was looked up."""
    told = [
        f"{thread.label} {in_words(look, thread)}"
        for thread in look.threads
        if thread.role == role and thread.outside
    ]
    return f": {'; '.join(told)}" if told else ""
