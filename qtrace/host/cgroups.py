"""Where a thread's cgroups are mounted here: v2, v1's hierarchies, both beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class _Mount:
    root: str
    at: str

    def folder(self, cgroup: str) -> Path | None:
        """A cgroup's folder, None where it is not below what is mounted."""
        inside = self.root == "/" or f"{cgroup}/".startswith(f"{self.root}/")
        if not inside or ".." in cgroup.split("/"):
            return None
        return Path(self.at + "/" + cgroup.removeprefix(self.root if self.root != "/" else ""))


class Cgroups:
    """Those of one controller, as they are mounted here.

    Args:
        controller: as v1 calls it (``freezer``, ``cpu``).
    """

    def __init__(self, controller: str) -> None:
        self._controller = controller

    def around(self, text: str) -> Iterator[tuple[str, Path, bool]]:
        """A thread's cgroups, from its own to the outermost below the root: as /proc names it, its
        folder, and whether it is one of v2.

        Args:
            text: its /proc/PID/cgroup.
        """
        for line in text.splitlines():
            _number, controllers, path = line.split(":", 2)
            names = controllers.split(",")
            kind = self._controller if self._controller in names else controllers
            mount = self._mounts.get(kind)
            while mount is not None and len(path) > 1:
                folder = mount.folder(path)
                if folder is not None:
                    yield path, folder, not kind
                path = path.rpartition("/")[0]

    @cached_property
    def _mounts(self) -> dict[str, _Mount]:
        """By what /proc/PID/cgroup calls the hierarchy: empty for v2, else its controllers."""
        found: dict[str, _Mount] = {}
        try:
            text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return found
        for line in text.splitlines():
            before, _, after = line.partition(" - ")
            kind, _source, options = after.split(" ", 2)
            mount = _Mount(*map(_unescaped, before.split()[3:5]))
            if kind == "cgroup2":
                found.setdefault("", mount)
            elif kind == "cgroup" and self._controller in options.split(","):
                found.setdefault(self._controller, mount)
        return found


def read_setting(file: Path) -> str:
    """One of a cgroup's files; empty where it is not there, or not to be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _unescaped(text: str) -> str:
    """mountinfo writes spaces and the like as octal numbers."""
    return text.encode("utf-8", "surrogateescape").decode("unicode_escape")
