"""Whether a thread is frozen by its cgroup, and by which one: cgroup v2, and v1's freezer."""

from __future__ import annotations

from qtrace.host.cgroups import Cgroups, read_setting

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


class Freezer:
    """The cgroups as they are mounted here."""

    def __init__(self) -> None:
        self._cgroups = Cgroups("freezer")

    def cgroup(self, text: str) -> str:
        """The cgroup that froze a thread, as its /proc/PID/cgroup names it; empty for none.

        Args:
            text: that file. A cgroup is frozen with each one around it.
        """
        for path, folder, is_v2 in self._cgroups.around(text):
            file = "cgroup.freeze" if is_v2 else "freezer.self_freezing"
            if read_setting(folder / file) == "1":
                return path
        return ""
