"""Which processes have a file open: one readlink(2) for each descriptor on the host, once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from qtrace.host.peer import namespace
from qtrace.host.pid_namespace import own_namespace

O_ACCMODE, O_RDONLY, O_WRONLY = 3, 0, 1


class Owners:
    """The open files of all processes that can be seen, as they were when it was first asked.

    Args:
        limit_s: what there is later is not looked at.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        # Processes whose descriptors may not be seen, and whether time has run out.
        self._refused = 0
        self._cut_off = False

    @cached_property
    def _open(self) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        deadline = time.monotonic() + self._limit_s
        for pid in pids():
            try:
                with os.scandir(f"/proc/{pid}/fd") as entries:
                    for entry in entries:
                        with suppress(OSError):
                            link = os.readlink(entry.path)
                            found.setdefault(link, []).append((pid, int(entry.name)))
                        if time.monotonic() > deadline:
                            break
            except PermissionError:
                self._refused += 1
            except OSError:
                continue
            if time.monotonic() > deadline:
                self._cut_off = True
                break
        return found

    def of(self, link: str) -> list[tuple[int, int]]:
        """The processes and their descriptors whose link reads so."""
        return self._open.get(link, [])

    def named(self, path: str) -> list[tuple[int, int]]:
        """Those of files whose name is the path's last part, wherever they lie."""
        name = f"/{os.path.basename(path)}"
        found = [owners for link, owners in self._open.items() if link.endswith(name)]
        return [owner for owners in found for owner in owners]

    def of_device(self, name: str) -> list[tuple[int, int]]:
        """The same for a device, in whatever mount namespace: in another one than one's own the
        path begins where that file system does."""
        links = [link for link in self._open if link in (f"/dev/{name}", f"/{name}")]
        return [owner for link in links for owner in self._open[link]]

    @property
    def unseen(self) -> str:
        """Why not all owners are known, in words; empty when they are."""
        assert self._open is not None
        if self._cut_off:
            return f"not all processes could be looked through in {self._limit_s:g} s"
        if self._refused:
            count = f"{self._refused} process" + ("es" if self._refused > 1 else "")
            return f"it may belong to one of {count} that this user may not look into"
        if not os.path.lexists("/proc/1"):
            return "it may belong to a process that /proc hides from this user (hidepid)"
        if not _sees_all():
            return "it may belong to a process outside of this container (pid namespace)"
        return ""

    @cached_property
    def network_namespaces(self) -> list[int]:
        """A process of each network namespace that can be seen."""
        first = {namespace(pid, "net"): pid for pid in reversed(pids())}
        first.pop("", None)
        return sorted(first.values())


def pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def fdinfo(pid: int, fd: int) -> dict[str, str]:
    """What the kernel tells of a descriptor; empty when it is closed, or not to be seen.

    A key that occurs several times has its last value.
    """
    found = {}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    return found


def access(facts: dict[str, str]) -> int | None:
    """How a descriptor was opened: ``O_RDONLY``, ``O_WRONLY``, ``O_RDWR``."""
    with suppress(KeyError, ValueError):
        return int(facts["flags"], 8) & O_ACCMODE
    return None


def polled(pid: int, fd: int) -> Iterator[int]:
    """The descriptors that an epoll descriptor waits for."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text(errors="replace").splitlines():
            fields = line.split()
            if fields[:1] == ["tfd:"] and len(fields) > 1:
                yield int(fields[1])


def _sees_all() -> bool:
    """Whether this is the first pid namespace."""
    with suppress(OSError):
        return own_namespace().is_first
    return False
