"""Whether a thread is frozen by its cgroup, and by which one: cgroup v2, and v1's freezer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Where a frozen thread sleeps: do_freezer_trap() (v2; it may be inlined) and v1's.
TRAPS = frozenset({"do_freezer_trap", "get_signal", "__refrigerator"})
# Since 6.1 (f5d39b020809) v1 leaves a thread where it sleeps, and it shows as D, which none of
# these sleeps is by itself.
FREEZABLE = ("futex_", "do_sys_poll", "poll_schedule_timeout", "ep_poll", "do_epoll_wait",
             "hrtimer_nanosleep", "do_select")  # fmt: skip


def may_be_frozen(letter: str, wchan: str) -> bool:
    """Whether it is worth while to look at a thread's cgroups; an unknown wchan tells nothing."""
    return letter in ("S", "D") and (letter == "D" or not wchan or wchan in TRAPS)


def shows_frozen(letter: str, wchan: str) -> bool:
    """Whether the thread's own sleep shows it, where its cgroups are not to be seen."""
    if letter == "D":
        return wchan == "__refrigerator" or wchan.startswith(FREEZABLE)
    return letter == "S" and wchan in TRAPS


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


class Freezer:
    """The cgroups as they are mounted here."""

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
            elif kind == "cgroup" and "freezer" in options.split(","):
                found.setdefault("freezer", mount)
        return found

    def cgroup(self, text: str) -> str:
        """The cgroup that froze a thread, as its /proc/PID/cgroup names it; empty for none.

        Args:
            text: that file. A cgroup is frozen with each one around it.
        """
        for line in text.splitlines():
            _number, controllers, path = line.split(":", 2)
            names = controllers.split(",")
            kind = "freezer" if "freezer" in names else controllers
            mount = self._mounts.get(kind)
            if mount is None:
                continue
            file = "freezer.self_freezing" if kind else "cgroup.freeze"
            here = path
            while len(here) > 1:
                folder = mount.folder(here)
                if folder is not None and _read(folder / file) == "1":
                    return here
                here = here.rpartition("/")[0]
        return ""


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _unescaped(text: str) -> str:
    """mountinfo writes spaces and the like as octal numbers."""
    return text.encode("utf-8", "surrogateescape").decode("unicode_escape")
