"""A hunt: cells one after the other, at most two at once, within its limits."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from qtrace.errors import LabFailed
from qtrace.lab.hunt.cell import Cell, Limits, Result, learn, run_cell
from qtrace.lab.hunt.guest_program import PATTERN
from qtrace.lab.hunt.hunt_guest import DISK_FILE, FLOPPY_FILE
from qtrace.lab.hunt.qmp_turns import DISK_MIB, MIB

# Of the disk of files that the guests see; they read no further.
FILLED_MIB = 16
FLOPPY_BYTES = 1440 * 1024
# What a cell may take of the host's disk, with its core.
RESERVE_BYTES = 1 << 30
MOST_AT_ONCE = 2


def find_qemu_img() -> str:
    """Raises LabFailed."""
    found = shutil.which("qemu-img")
    if found is None:
        raise LabFailed("there is no qemu-img here", "apt install qemu-utils")
    return found


def make_disks(folder: Path, qemu_img: str) -> None:
    """The disk and the floppy that each guest gets a copy of. Raises LabFailed."""
    (folder / FLOPPY_FILE).write_bytes(bytes([PATTERN]) * FLOPPY_BYTES)
    raw = folder / "disk.raw"
    with raw.open("wb") as file:
        file.write(bytes([PATTERN]) * (FILLED_MIB * MIB))
        file.truncate(DISK_MIB * MIB)
    command = [qemu_img, "convert", "-f", "raw", "-O", "qcow2", raw.name, DISK_FILE]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabFailed(f"{qemu_img} makes no disk: {error}", "apt install qemu-utils") from error
    raw.unlink()


def hunt(
    cells: Sequence[Cell],
    limits: Limits,
    qemu_img: str,
    *,
    at_once: int = 1,
    for_s: float | None = None,
    began: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[Result]:
    """Each cell's result as it comes.

    A cell that is under way when somebody asks for the end, or the time is up, ends early, and has
    its result.

    Args:
        at_once: guests, at most ``MOST_AT_ONCE``.
        for_s: no cell begins later than that.

    Raises:
        LabFailed: the disk is full.
    """
    until = None if for_s is None else time.monotonic() + for_s
    over = threading.Event()

    def asked() -> bool:
        late = until is not None and time.monotonic() > until
        return over.is_set() or late or limits.asked()

    bounded = replace(limits, asked=asked)
    for build in dict.fromkeys(cell.build for cell in cells):
        learn(build, limits.files)
    # The kernel ends a guest with the thread that has started it.
    with ThreadPoolExecutor(min(at_once, MOST_AT_ONCE), "qtrace-hunt") as pool:
        try:
            running: set[Future[Result]] = set()
            for cell in cells:
                if asked():
                    break
                check_disk(limits.files)
                began(cell)
                running.add(pool.submit(run_cell, cell, qemu_img, bounded))
                if len(running) >= min(at_once, MOST_AT_ONCE):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            yield from (one.result() for one in wait(running).done)
        finally:
            over.set()


def check_disk(folder: Path) -> None:
    """Raises LabFailed where a cell may find no room."""
    place = os.statvfs(folder)
    free = place.f_bavail * place.f_frsize
    if free < RESERVE_BYTES:
        raise LabFailed(
            f"{folder} has {free >> 20} MiB left: a guest's disk and core may take"
            f" {RESERVE_BYTES >> 20}",
            "make room there, or name another folder by TMPDIR",
        )
