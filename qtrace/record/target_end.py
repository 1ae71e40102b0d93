"""How a process that is not our child came to its end.

Made by hand: neither Python's os nor psutil has PIDFD_GET_INFO.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from pathlib import Path

from qtrace.host import privileges
from qtrace.machine.stat_file import EXIT_CODE, STATE, stat_fields

# struct pidfd_info and its ioctl (linux/pidfd.h); with the exit status since Linux 6.15.
PIDFD_INFO = struct.Struct("<QQ11Ii")
PIDFD_GET_INFO = (3 << 30) | (PIDFD_INFO.size << 16) | (0xFF << 8) | 11
PIDFD_INFO_EXIT = 1 << 3


class Watcher:
    """Notices the end of a process by its pidfd, which no other process can take over."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when the process is gone already."""
        self._pid = pid
        self.fd = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def ended(self) -> bool:
        return bool(self._poll.poll(0))

    def status(self) -> dict[str, int]:
        """``{"status": 0}`` or ``{"signal": 6}``; empty where the kernel does not tell."""
        # Whoever may not look into a process is told 0.
        code = None if privileges.given_up() else _zombie_status(self._pid)
        if code is None:
            code = _reaped_status(self.fd)
        if code is None:
            return {}
        if os.WIFSIGNALED(code):
            return {"signal": os.WTERMSIG(code)}
        return {"status": os.WEXITSTATUS(code)}

    def close(self) -> None:
        os.close(self.fd)


def _zombie_status(pid: int) -> int | None:
    """From /proc/PID/stat, as long as the parent has not reaped the process."""
    try:
        fields = stat_fields(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except OSError:
        return None
    return int(fields[EXIT_CODE]) if fields[STATE] in "ZX" else None


def _reaped_status(pidfd: int) -> int | None:
    raw = bytearray(PIDFD_INFO.size)
    struct.pack_into("<Q", raw, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, raw)
    except OSError:
        return None
    mask, *_others, code = PIDFD_INFO.unpack(raw)
    return int(code) if mask & PIDFD_INFO_EXIT else None
