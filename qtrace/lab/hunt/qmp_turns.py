"""What a hunt's client asks of QEMU: a round of each kind, its turns and pauses left to chance.

Whatever QEMU refuses is counted and passed over: which refusals are right depends on the build.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtrace.lab.hunt.devices import IOTHREAD, NODE
from qtrace.lab.migration_sink import MigrationSink
from qtrace.process.qmp_client import CommandRefused, QmpClient

MIB = 1 << 20
DISK_MIB = 64
# A whole disk is copied in less than a second; a migration takes less than that.
JOB_S = 8.0
LONGEST_PAUSE_S = 0.02
# At most so many nodes on top of each other: each takes a file.
LAYERS = 6


class DidNotEnd(Exception):
    """A job or a migration that goes on, while QEMU answers."""


class Client:
    """Asks one QEMU.

    Attributes:
        chance: decides; made of the cell's seed.
        asked: how many commands.
        refused: why, and how often.
        last: the latest command.
        slowest_s: the longest time to an answer, and ``slowest`` to which command.
    """

    def __init__(self, qmp: QmpClient, chance: random.Random, folder: Path, image: str) -> None:
        self.qmp, self.chance, self.folder, self.qemu_img = qmp, chance, folder, image
        self.asked = 0
        self.refused: Counter[str] = Counter()
        self.last = ""
        self.slowest_s, self.slowest = 0.0, ""
        self.top, self.layers = NODE, 1
        self._made = 0

    def ask(self, command: str, /, **arguments: Any) -> Any:
        """The answer; None when QEMU refused. ``_`` in names stands for ``-``.

        Raises:
            QmpFailed: there is none.
        """
        self.last, self.asked, began = command, self.asked + 1, time.monotonic()
        try:
            return self.qmp.command(
                command, **{name.replace("_", "-"): value for name, value in arguments.items()}
            )
        except CommandRefused as refused:
            self.refused[f"{command}: {refused.message.partition(': ')[2]}"] += 1
            return None
        finally:
            took = time.monotonic() - began
            if took > self.slowest_s:
                self.slowest_s, self.slowest = took, command

    def new(self, kind: str) -> str:
        """A name that was not there before."""
        self._made += 1
        return f"{kind}{self._made}"

    def pause(self, most_s: float = LONGEST_PAUSE_S) -> None:
        """Nothing, or a moment."""
        if self.chance.random() < 0.5:
            time.sleep(self.chance.uniform(0, most_s))

    def trigger(self) -> None:
        """What makes QEMU wait for all requests, or nothing."""
        turn = self.chance.choice(("stop", "reset", "", ""))
        if turn == "stop":
            self.ask("stop")
            self.ask("cont")
        elif turn == "reset":
            self.ask("system_reset")

    def image(self, size: int) -> str:
        """A new empty qcow2 file."""
        name = f"{self.new('image')}.qcow2"
        subprocess.run(
            [self.qemu_img, "create", "-q", "-f", "qcow2", name, str(size)],
            cwd=self.folder, check=True, capture_output=True,
        )  # fmt: skip
        return name

    def overlay(self) -> str:
        """A new node on top of the disk; the old top's name when QEMU refuses."""
        node, before = self.new("node"), self.top
        done = self.ask(
            "blockdev-snapshot-sync", node_name=self.top, snapshot_node_name=node,
            snapshot_file=f"{node}.qcow2",
        )  # fmt: skip
        if done is not None:
            self.top, self.layers = node, self.layers + 1
        return before

    def end_job(self, job: str, *, cancel: bool | None = None) -> bool:
        """Complete or cancel a job, do something at once, and see it out; whether it did its work.

        Raises:
            DidNotEnd
        """
        cancel = self.chance.random() < 0.3 if cancel is None else cancel
        if cancel:
            self.pause()
            self.ask("job-cancel", id=job)
            self.trigger()
        deadline = time.monotonic() + JOB_S
        while True:
            jobs = {one["id"]: one for one in self.ask("query-jobs") or []}
            if job not in jobs:
                return False
            status = jobs[job]["status"]
            if status == "concluded":
                self.ask("job-dismiss", id=job)
                return "error" not in jobs[job] and not cancel
            if status == "ready" and not cancel:
                self.pause()
                self.ask("job-complete", id=job)
                self.trigger()
            if time.monotonic() > deadline:
                raise DidNotEnd(f"the {jobs[job]['type']} job stays {status} for {JOB_S:g} s")
            time.sleep(0.001)


def backup(client: Client) -> None:
    target, job = client.new("target"), client.new("job")
    client.ask("blockdev-add", driver="null-co", node_name=target, size=DISK_MIB * MIB)
    client.ask(
        "blockdev-backup", job_id=job, device=client.top, target=target, auto_dismiss=False,
        sync=client.chance.choice(("full", "top", "none")),
    )  # fmt: skip
    # One of sync=none goes on for ever.
    client.end_job(job, cancel=True)
    client.ask("blockdev-del", node_name=target)


def mirror(client: Client) -> None:
    """To another file, which takes the disk's place when it is completed."""
    target, job, before = client.new("node"), client.new("job"), client.top
    file = {"driver": "file", "filename": client.image(DISK_MIB * MIB)}
    client.ask("blockdev-add", driver="qcow2", node_name=target, file=file)
    client.ask(
        "blockdev-mirror", job_id=job, device=before, target=target, sync="full",
        auto_dismiss=False, copy_mode=client.chance.choice(("background", "write-blocking")),
    )  # fmt: skip
    if client.end_job(job):
        client.top, client.layers = target, 1
        client.ask("blockdev-del", node_name=before)
    else:
        client.ask("blockdev-del", node_name=target)


def commit(client: Client) -> None:
    before, job = client.overlay(), client.new("job")
    client.pause()
    client.ask("block-commit", job_id=job, device=client.top, auto_dismiss=False)
    if client.end_job(job, cancel=client.layers <= LAYERS and client.chance.random() < 0.2):
        client.top = NODE if client.layers > 2 else before
        client.layers = 1


def stream(client: Client) -> None:
    client.overlay()
    job = client.new("job")
    client.ask("block-stream", job_id=job, device=client.top, auto_dismiss=False)
    if client.end_job(job, cancel=client.layers <= LAYERS and client.chance.random() < 0.3):
        client.layers = 1


def overlay(client: Client) -> None:
    if client.layers <= LAYERS:
        client.overlay()
    client.pause()
    client.trigger()


def snapshot(client: Client) -> None:
    """Its three jobs."""
    tag, nodes = client.new("tag"), [client.top]
    for command in ("snapshot-save", "snapshot-load", "snapshot-delete"):
        job = client.new("job")
        more = {} if command == "snapshot-delete" else {"vmstate": client.top}
        client.ask(command, job_id=job, tag=tag, devices=nodes, **more)
        client.end_job(job, cancel=False)
        if command == "snapshot-load":
            client.ask("cont")
        client.pause()


def savevm(client: Client) -> None:
    """The monitor's own, which has no job."""
    tag = client.new("tag")
    for line in (f"savevm {tag}", f"loadvm {tag}", f"delvm {tag}"):
        said = client.ask("human-monitor-command", command_line=line)
        if said:
            client.refused[f"{line.split()[0]}: {said.strip()}"] += 1
        client.pause()
    client.ask("cont")


def stop(client: Client) -> None:
    client.ask("stop")
    client.pause()
    client.ask("cont")
    client.pause()


def reset(client: Client) -> None:
    client.ask("system_reset")
    client.pause()


def migrate(client: Client) -> None:
    """To nowhere: completed, cancelled or failed."""
    how = client.chance.choice(("completed", "cancelled", "failed"))
    sink = MigrationSink
    client.ask("migrate", uri=sink.breaks_off if how == "failed" else sink.takes_all)
    if how == "cancelled":
        client.pause()
        client.ask("migrate_cancel")
    deadline = time.monotonic() + JOB_S
    while True:
        status = (client.ask("query-migrate") or {}).get("status")
        if status in ("completed", "failed", "cancelled", None):
            break
        if time.monotonic() > deadline:
            raise DidNotEnd(f"the migration stays {status} for {JOB_S:g} s")
        time.sleep(0.001)
    if status == "completed":
        client.ask("cont")


def hotplug(client: Client) -> None:
    """Of a PCI device, which its guest has to eject, and of a disk behind a SCSI bus."""
    node, device = client.new("null"), client.new("device")
    client.ask("blockdev-add", driver="null-co", node_name=node, size=DISK_MIB * MIB)
    if client.chance.random() < 0.5:
        owner = {"iothread": IOTHREAD} if client.chance.random() < 0.5 else {}
        client.ask("device_add", driver="virtio-blk-pci", id=device, drive=node, addr="6", **owner)
    else:
        client.ask("device_add", driver="scsi-hd", id=device, drive=node, bus="spare.0")
    client.pause()
    client.ask("device_del", id=device)
    client.pause()
    client.trigger()
    client.ask("blockdev-del", node_name=node)


def iothreads(client: Client) -> None:
    name = client.new("thread")
    client.ask("object-add", qom_type="iothread", id=name)
    client.pause()
    client.ask("object-del", id=name)


def resize(client: Client) -> None:
    client.ask(
        "block_resize", node_name=client.top,
        size=(DISK_MIB + client.chance.randrange(DISK_MIB)) * MIB,
    )  # fmt: skip
    client.pause()


def nbd(client: Client) -> None:
    """A server, an export of the disk, a client that reads from it, and its end."""
    name, path = client.new("export"), f"{client.new('nbd')}.sock"
    address = {"type": "unix", "data": {"path": path}}
    client.ask("nbd-server-start", addr=address)
    client.ask("block-export-add", type="nbd", id=name, node_name=client.top, name="disk")
    url = f"nbd+unix:///disk?socket={path}"
    reader = subprocess.Popen(
        [client.qemu_img, "convert", "-f", "raw", "-O", "raw", url, os.devnull],
        cwd=client.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        client.pause(0.05)
        mode = client.chance.choice(("safe", "hard"))
        client.ask("block-export-del", id=name, mode=mode)
        client.trigger()
        client.ask("nbd-server-stop")
    finally:
        reader.kill()
        reader.wait()


def reopen(client: Client) -> None:
    client.ask(
        "blockdev-reopen",
        options=[{
            "driver": "qcow2", "node-name": NODE, "file": "file",
            "l2-cache-size": (1 + client.chance.randrange(4)) * MIB,
        }],
    )  # fmt: skip
    client.pause()
    client.trigger()


def set_iothread(client: Client) -> None:
    """Of the disk, by force, and of a node that nobody uses."""
    node = client.new("null")
    client.ask("blockdev-add", driver="null-co", node_name=node, size=DISK_MIB * MIB)
    for name in (node, client.top):
        for thread in (IOTHREAD, None):
            client.ask("x-blockdev-set-iothread", node_name=name, iothread=thread, force=True)
            client.pause()
    client.ask("blockdev-del", node_name=node)


def quit_in_job(client: Client) -> None:
    """The end comes while a job is under way."""
    kind = client.chance.choice((_begin_mirror, _begin_commit, _begin_backup))
    kind(client)
    client.pause()
    raise EndNow


class EndNow(Exception):
    """No more rounds: the cell's end is what is tried."""


def _begin_mirror(client: Client) -> None:
    client.ask("blockdev-add", driver="null-co", node_name="last", size=DISK_MIB * MIB)
    client.ask("blockdev-mirror", job_id="last", device=client.top, target="last", sync="none")


def _begin_commit(client: Client) -> None:
    client.overlay()
    client.ask("block-commit", job_id="last", device=client.top)


def _begin_backup(client: Client) -> None:
    client.ask("blockdev-add", driver="null-co", node_name="last", size=DISK_MIB * MIB)
    client.ask("blockdev-backup", job_id="last", device=client.top, target="last", sync="full")


COMMANDS: dict[str, Callable[[Client], None]] = {
    "snapshot": snapshot,
    "savevm": savevm,
    "overlay": overlay,
    "backup": backup,
    "mirror": mirror,
    "commit": commit,
    "stream": stream,
    "stop": stop,
    "reset": reset,
    "migrate": migrate,
    "hotplug": hotplug,
    "iothreads": iothreads,
    "resize": resize,
    "nbd": nbd,
    "reopen": reopen,
    "set-iothread": set_iothread,
    "quit-in-job": quit_in_job,
}
