"""What a process's files lie on: mountinfo, and who serves a FUSE file system."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtrace.host.owners import Owners, fdinfo

# What reads a command line waits for is what others do to that process's memory map.
READING_S = 0.2
OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A line of /proc/PID/mountinfo."""

    identity: int
    device: str
    at: str
    kind: str
    source: str

    @property
    def is_fuse(self) -> bool:
        return self.kind.partition(".")[0] in ("fuse", "fuseblk")

    @property
    def text(self) -> str:
        """``fuse (qemu-storage-daemon)``, ``nfs4 host:/srv``, ``ext4 /dev/vda1``."""
        told = self.source not in ("", "none", self.kind)
        return f"{self.kind} {self.source}" if told else self.kind


class Mounts:
    """The mounts of one process's namespace."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._mounts: dict[int, Mount] = {}
        with suppress(OSError):
            raw = Path(f"/proc/{pid}/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
            mounts = [made for line in raw.splitlines() if (made := _mount(line))]
            self._mounts = {mount.identity: mount for mount in mounts}

    def of_fd(self, fd: int) -> Mount | None:
        """The mount that an open file lies on."""
        identity = fdinfo(self._pid, fd).get("mnt_id", "")
        return self._mounts.get(int(identity)) if identity.isdigit() else None

    def of_path(self, path: str) -> Mount | None:
        """The mount that a path leads to, as far as its text shows: a link may lead elsewhere.

        The later mount covers an earlier one.
        """
        inside = [m for m in self._mounts.values() if f"{path}/".startswith(f"{m.at.rstrip('/')}/")]
        longest = max((len(mount.at) for mount in inside), default=0)
        return next((m for m in reversed(inside) if len(m.at) == longest), None)


def servers(mount: Mount, owners: Owners) -> tuple[list[int], bool]:
    """The processes that serve a FUSE mount, and whether that is certain.

    Their /dev/fuse names its connection since Linux 6.18. Before, it is the only one that has it
    open, where all processes are seen, or perhaps the one whose command line names the mount.
    """
    connection = mount.device.partition(":")[2]
    facts = [(pid, fdinfo(pid, fd)) for pid, fd in owners.of_device("fuse")]
    if any("fuse_connection" in known for _pid, known in facts):
        certain = [pid for pid, known in facts if known.get("fuse_connection") == connection]
        return list(dict.fromkeys(certain)), True
    candidates = list(dict.fromkeys(pid for pid, _known in facts))
    if len(candidates) == 1:
        return candidates, not owners.unseen
    at = os.fsencode(mount.at)
    named = [pid for pid in candidates if at in command_line(pid)]
    return (named, False) if len(named) == 1 else ([], False)


def command_line(pid: int) -> bytes:
    """A process's; empty where that cannot be read in time, as its memory map may be locked."""
    found: list[bytes] = []

    def read() -> None:
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(READING_S)
    return found[0] if found else b""


def waiting(mount: Mount) -> int | None:
    """How many requests a FUSE mount's server has not answered; None when it is not to be seen."""
    connection = mount.device.partition(":")[2]
    try:
        return int(Path(f"/sys/fs/fuse/connections/{connection}/waiting").read_text())
    except (OSError, ValueError):
        return None


def absolute(pid: int, path: str, dirfd: int | None) -> str:
    """A path as a process means it, seen from its root; empty when what it begins at is not to be
    seen. Nothing of it is looked up."""
    if path.startswith("/"):
        return os.path.normpath(path)
    start = f"/proc/{pid}/cwd" if dirfd is None else f"/proc/{pid}/fd/{dirfd}"
    try:
        root, folder = os.readlink(f"/proc/{pid}/root"), os.readlink(start)
    except OSError:
        return ""
    # Links are seen from one's own root, mountinfo from the process's (chroot).
    inside = folder.removeprefix(root) if f"{folder}/".startswith(f"{root}/") else folder
    return os.path.normpath(os.path.join("/", inside, path))


def _mount(line: str) -> Mount | None:
    before, _, after = line.partition(" - ")
    left, right = before.split(), after.split(" ")
    if len(left) < 6 or len(right) < 2:
        return None
    at, kind, source = (_unescaped(text) for text in (left[4], right[0], right[1]))
    return Mount(int(left[0]), left[2], at, kind, source)


def _unescaped(text: str) -> str:
    """mountinfo writes spaces and the like as octal numbers."""
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
