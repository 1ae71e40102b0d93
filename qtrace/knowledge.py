"""What is known of QEMU beforehand and more than one part needs, each fact once.

The standard library only: gdb runs it, and the analysis may not know the target.
"""

from __future__ import annotations

import re

# QEMUBH's flags (util/async.c; unchanged from 5.2 to 10.2).
PENDING, SCHEDULED, DELETED, ONESHOT, IDLE = 1, 2, 4, 8, 16

# Names of executables; /proc/PID/comm, which everybody may read, has the first 15 bytes.
# NixOS starts `.qemu-system-x86_64-wrapped` by a script.
PROGRAMS = re.compile(r"\.?(qemu-(system-|kvm|storage-daem|img|nbd|io)|kvm$)")

# Their main thread polls instead of running a main loop: there is no nesting to speak of.
WITHOUT_MAIN_LOOP = frozenset({"qemu-img", "qemu-nbd", "qemu-io"})

# What the bottom halves of the snapshot jobs call (migration/savevm.c): they need the guest
# stopped and the main thread. HMP savevm and loadvm call the same without any.
SNAPSHOT_JOBS = {
    "snapshot_save_job_bh": "save_snapshot",
    "snapshot_load_job_bh": "load_snapshot",
    "snapshot_delete_job_bh": "delete_snapshot",
}
