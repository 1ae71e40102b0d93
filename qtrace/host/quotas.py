"""Whether a thread's cgroups let it run as much as it wants to: their quotas of processor time
(v2's cpu.max, v1's cpu.cfs_quota_us), and how often these held it back.

How long a thread waited for a processor does not tell the one from the other: whom its cgroup holds
back waits as on a crowded host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from qtrace.host.cgroups import Cgroups, read_setting


@dataclass(frozen=True)
class HeldBack:
    """What a cgroup's quota did meanwhile.

    Attributes:
        cgroup: as /proc/PID/cgroup names it.
        setting: the file that the quota is in.
        processors: so many it lets run at most, on the average.
        period_ns: the quota is that of one such.
        periods, times: how many of them there were in which somebody wanted to run, and in how many
            it held threads back.
    """

    cgroup: str
    setting: str
    processors: float
    period_ns: int
    periods: int
    times: int


class Quotas:
    """Those of some threads, from now on.

    Args:
        texts: each thread's /proc/PID/cgroup.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        cgroups = Cgroups("cpu")
        # By folder, with the counts of the beginning.
        self._before: dict[Path, HeldBack] = {}
        for text in set(texts):
            for path, folder, is_v2 in cgroups.around(text):
                quota = _quota_of(path, folder, is_v2)
                if quota is not None:
                    self._before[folder] = quota

    def held_back(self) -> list[HeldBack]:
        """What they have done since, the one that held threads back for longest first."""
        found = []
        for folder, before in self._before.items():
            periods, times = _counts(folder)
            if periods > before.periods:
                own, held = periods - before.periods, times - before.times
                found.append(replace(before, periods=own, times=held))
        return sorted(found, key=lambda one: one.times * one.period_ns, reverse=True)


def _quota_of(cgroup: str, folder: Path, is_v2: bool) -> HeldBack | None:
    """With its counts so far; None where it has none."""
    if is_v2:
        setting, numbers = "cpu.max", read_setting(folder / "cpu.max").split()
    else:
        setting = "cpu.cfs_quota_us"
        numbers = [read_setting(folder / name) for name in (setting, "cpu.cfs_period_us")]
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        return None
    quota, period = map(int, numbers)
    return HeldBack(cgroup, setting, quota / period, period * 1000, *_counts(folder))


def _counts(folder: Path) -> tuple[int, int]:
    lines = read_setting(folder / "cpu.stat").splitlines()
    counts = dict(line.split(" ", 1) for line in lines)
    return int(counts.get("nr_periods", 0)), int(counts.get("nr_throttled", 0))
