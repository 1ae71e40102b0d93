"""Giving up all rights for good: the processes of the monitor that need none."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from qtrace.host import privileges

NOBODY = 65534


def give_up_rights() -> None:
    """Of root its user and groups, of anybody all capabilities. Before there is another thread.

    Raises OSError.
    """
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    privileges.give_up()


def allow_descriptors() -> None:
    """As many as this process may have: each QEMU takes some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
