"""``qtrace autopsy`` of a large guest: time, size, and whether the guest stands still for it."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pairs import Row, qemus
from qtrace.lab.guest import Accelerator, Guest
from qtrace.process.qmp_client import QmpClient

VCPUS, MEMORY_GIB, DISKS = 16, 64, 20
# As long as an autopsy of a sound guest takes, its start included.
WINDOW_S = 5.0
ACCELERATORS: tuple[Accelerator, ...] = ("tcg", "kvm")


def run(pairs: int) -> list[Row]:
    """A large guest, sound and hung: most of its memory was never touched, and none is reserved."""
    rows = []
    for (version, qemu), accel in zip(qemus(), ACCELERATORS, strict=False):
        with _large(qemu, accel) as guest:
            name = f"{version} {accel}: autopsy of {VCPUS} vCPUs, {MEMORY_GIB} GiB, {DISKS} disks"
            rows += _beside(name, guest, max(pairs // 5, 1))
            rows.append(_hung(f"{name}, hung", guest))
    return rows


def _large(qemu: Path, accel: Accelerator) -> Guest:
    memory = f"memory-backend-ram,id=ram,size={MEMORY_GIB}G,reserve=off"
    arguments = ["-object", memory, "-machine", "memory-backend=ram", "-smp", str(VCPUS)]
    for number in range(DISKS):
        arguments += ["-blockdev", f"null-co,node-name=n{number},size=1073741824"]
        arguments += ["-device", f"virtio-blk-pci,drive=n{number}"]
    return Guest(qemu, accel, extra_args=arguments, memory_mib=MEMORY_GIB << 10)


@dataclass
class Pauses:
    """The longest of a window, in milliseconds.

    Attributes:
        writes: for how long the guest wrote nothing to its flash, at least: both sightings of the
            same number are ours, so that it does not count where we had no processor.
        reply: the slowest answer to ``query-status``, our own waits for a processor included.
    """

    writes: float = 0.0
    reply: float = 0.0


def _beside(name: str, guest: Guest, pairs: int) -> list[Row]:
    with ExitStack() as stack:
        qmp = stack.enter_context(QmpClient(guest.second_qmp_socket, timeout_s=60))
        alone, beside, taken = [], [], []
        for _ in range(pairs):
            alone.append(_watched(guest, qmp, lambda: time.sleep(WINDOW_S)))
            beside.append(_watched(guest, qmp, lambda: taken.append(_autopsy(guest))))
    took = [one["took_s"] for one in taken]
    size = max(one["bytes"] for one in taken) / 1e6
    whole = f"{statistics.median(took):.1f} s, at most {max(took):.1f} s; {size:.1f} MB"
    rows = [(name, whole, "-", f"{pairs} of them", "at most 10 s, 20 MB")]
    for what, of in (
        ("no flash write", lambda one: one.writes),
        ("slowest QMP answer", lambda one: one.reply),
    ):
        ours, theirs = (statistics.median(map(of, windows)) for windows in (beside, alone))
        most = f"{max(map(of, beside)):.1f} and {max(map(of, alone)):.1f} ms at most"
        rows.append(
            (f"the same: longest pause, {what}", f"{ours:.1f} ms (median of {pairs}); {most}",
             f"{ours / theirs:.2f}", f"without it {theirs:.1f} ms", "as without it")
        )  # fmt: skip
    return rows


def _watched(guest: Guest, qmp: QmpClient, work: Callable[[], None]) -> Pauses:
    """The pauses of a guest while something is done."""
    pauses = Pauses()
    doing = threading.Thread(target=work)
    doing.start()
    count, since = guest.flash_writes(), time.monotonic()
    while doing.is_alive():
        asked = time.monotonic()
        qmp.command("query-status")
        pauses.reply = max(pauses.reply, 1e3 * (time.monotonic() - asked))
        seen, now = guest.flash_writes(), time.monotonic()
        if seen == count:
            pauses.writes = max(pauses.writes, 1e3 * (now - since))
        else:
            count, since = seen, time.monotonic()
    return pauses


def _autopsy(guest: Guest) -> dict[str, Any]:
    path = guest.folder / "autopsy"
    run = subprocess.run(
        [sys.executable, "-m", "qtrace", "autopsy", "--pid", str(guest.pid), "-o", str(path),
         "--force", "--format", "json"],
        check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return dict(json.loads(run.stdout))


def _hung(name: str, guest: Guest) -> Row:
    """Its main loop waits for somebody who reads a pipe."""
    pipe = guest.folder / "pipe"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(guest.second_qmp_socket))
        save = {"execute": "pmemsave", "arguments": {"val": 0, "size": 1, "filename": pipe.name}}
        monitor.sendall(b'{"execute": "qmp_capabilities"}' + json.dumps(save).encode())
        taken = _autopsy(guest)
    size = taken["bytes"] / 1e6
    measured = f"{taken['took_s']:.1f} s; {size:.1f} MB; verdict {taken['verdict']}"
    return (name, measured, "-", "-", "at most 10 s, 20 MB, stuck")
