"""What the process of the monitor that looks, and arms, keeps of its rights."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from qtrace.host import locked_memory, privileges
from qtrace.host.uprobe_links import links_work

# To read other processes, and what of theirs was deleted (map_files).
LOOKS = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHECKPOINT_RESTORE")
PROBES = ("CAP_BPF", "CAP_PERFMON")
# A recorder that is begun again becomes nobody.
OTHERS = ("CAP_SETUID", "CAP_SETGID")


# It computes little, and a QEMU that starts does not wait for its probes.
AHEAD = -10


def go_ahead_of_others() -> None:
    """Where this may be done: of a busy host the processors are had in time."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(AHEAD, os.getpriority(os.PRIO_PROCESS, 0)))


def keep_what_looks_take(folder: Path | None, *, probing: bool) -> None:
    """Of the process that looks, and arms where it is ``probing``. Before there is another thread.

    Anybody but root has what was given on purpose, as a unit does, and what it starts (an autopsy)
    has that by way of the ambient set, which goes with what is given up.

    Args:
        folder: where it writes.

    Raises OSError.
    """
    if os.geteuid() != 0:
        return
    keep = {*LOOKS}
    if probing:
        keep |= {*PROBES, *OTHERS}
        if not links_work():
            keep.add("CAP_SYS_ADMIN")
        if locked_memory.counts_here():
            keep.add("CAP_SYS_RESOURCE")
    if folder is not None and folder.stat().st_uid != os.geteuid():
        keep.add("CAP_DAC_OVERRIDE")
    privileges.give_up(keep)
