"""The pid namespace that we are in: the kernel counts threads otherwise than it is told here."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from qtrace.errors import NoProc

# PROC_PID_INIT_INO (linux/proc_ns.h): the number of the host's own is fixed.
FIRST = 0xEFFFFFFC


@dataclass(frozen=True, slots=True)
class PidNamespace:
    """Device, as the kernel numbers it (``dev_t``), and inode of its file."""

    device: int
    inode: int

    @property
    def is_first(self) -> bool:
        return self.inode == FIRST


def own_namespace() -> PidNamespace:
    """Ours. Raises OSError: there is no /proc."""
    return _of("self")


def namespace_of(pid: int) -> PidNamespace | None:
    """A process's; None when it is gone, or not ours to know."""
    with suppress(OSError):
        return _of(str(pid))
    return None


def _of(process: str) -> PidNamespace:
    # The kernel's own file, none of the process's.
    found = os.stat(f"/proc/{process}/ns/pid")
    # MKDEV() of linux/kdev_t.h.
    return PidNamespace(os.major(found.st_dev) << 20 | os.minor(found.st_dev), found.st_ino)


def require_proc() -> None:
    """Raises NoProc where there is no /proc, or one that numbers processes otherwise than we do, as
    unshare --pid alone leaves it."""
    try:
        ours = int(os.readlink("/proc/self")) == os.getpid()
    except (OSError, ValueError):
        raise NoProc("there is no /proc here") from None
    if not ours:
        raise NoProc(
            "/proc shows another pid namespace than that of qtrace: its numbers mean others"
        )
