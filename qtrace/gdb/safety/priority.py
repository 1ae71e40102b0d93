"""A processor at once for gdb and its watchdog: the guest stands still while they wait for one.

They share it: a gdb that is killed detaches 2 ms later, and the watchdog has to act before. On the
same processor its higher priority sees to that, on another one only luck does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# The watchdog acts while gdb is dying, and sleeps otherwise.
GDB_PRIORITY, WATCHDOG_PRIORITY = 1, 2
CGROUPS = Path("/sys/fs/cgroup")


def hurry(priority: int) -> None:
    """Give the calling process a real-time priority on the first processor it may use.

    Without the right to that, it gets what is nearest to it.
    """
    if _real_time(priority):
        # The first ones are for all, where others are kept for guests.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    else:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def _real_time(priority: int) -> bool:
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
        return True
    # Kernels with CONFIG_RT_GROUP_SCHED want a share of real time for the control group: the
    # root group has one, others only if somebody gave it to them.
    for share in CGROUPS.glob("cpu*/cpu.rt_runtime_us"):
        with suppress(OSError):
            share.with_name("cgroup.procs").write_text(str(os.getpid()))
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
            return True
    return False
