"""What /proc tells of a process, as files of an autopsy; nothing of the target's is opened.

In two parts: what the kernel answers in any case, and what some kernels answer only to who gets the
lock of the process's memory map, which a thread in uninterruptible sleep may hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from qtrace.host.descriptors import Descriptors

OF_PROCESS = ("stat", "limits", "io", "cgroup", "mountinfo", "sched", "oom_score")
OF_THREADS = ("comm", "stat", "wchan", "syscall", "schedstat", "stack", "status")
BEHIND_THE_LOCK = ("maps", "status")
# A QEMU has some dozen threads and descriptors; of a thousand the first tell enough.
MOST_THREADS, MOST_DESCRIPTORS = 512, 1024
MOST_BYTES = 1 << 20
DESCRIPTORS_S = 1.0


def of_process(pid: int) -> Iterator[tuple[str, bytes]]:
    """Files below ``proc/``, by name; those that cannot be read are left out."""
    for name in OF_PROCESS:
        yield from _file(f"/proc/{pid}/{name}", f"proc/{name}")


def of_threads(pid: int) -> Iterator[tuple[str, bytes]]:
    """One file for each kind, a line or a block for each thread."""
    tids = sorted(int(tid) for tid in _listed(f"/proc/{pid}/task"))
    for name in OF_THREADS:
        blocks = []
        for tid in tids[:MOST_THREADS]:
            for _name, data in _file(f"/proc/{pid}/task/{tid}/{name}", name):
                blocks.append(b"== %d\n%s\n" % (tid, data.rstrip(b"\n")))
        if blocks:
            yield f"threads/{name}", b"".join(blocks)


def of_descriptors(pid: int) -> tuple[str, bytes]:
    """Each descriptor with what it is, and who is at its other end."""
    fds = sorted(int(fd) for fd in _listed(f"/proc/{pid}/fd"))[:MOST_DESCRIPTORS]
    table = Descriptors(pid, DESCRIPTORS_S)
    told = {}
    for fd in fds:
        one = table.describe(fd)
        told[fd] = {"text": one.text, **asdict(one)}
    return "descriptors.json", json.dumps(told, indent=1, default=str).encode()


def behind_the_lock(pid: int) -> Iterator[tuple[str, bytes]]:
    """Whoever reads these may have to wait."""
    for name in BEHIND_THE_LOCK:
        yield from _file(f"/proc/{pid}/{name}", f"proc/{name}")


def _listed(folder: str) -> list[str]:
    with suppress(OSError):
        return [name for name in os.listdir(folder) if name.isdigit()]
    return []


def _file(path: str, name: str) -> Iterator[tuple[str, bytes]]:
    with suppress(OSError), Path(path).open("rb") as file:
        yield name, file.read(MOST_BYTES)
