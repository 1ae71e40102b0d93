"""The limit of locked memory, which BPF's maps and programs count against before Linux 5.11."""

from __future__ import annotations

import platform
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

COUNTED_BEFORE = (5, 11)
LIMIT = resource.RLIMIT_MEMLOCK


def counts_here() -> bool:
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return release is not None and (int(release[1]), int(release[2])) < COUNTED_BEFORE


def limit() -> int | None:
    """Bytes that this process may lock, as far as it may say so itself; None: any number."""
    hard = resource.getrlimit(LIMIT)[1]
    return None if hard == resource.RLIM_INFINITY else hard


@contextmanager
def lifted() -> Iterator[None]:
    """Without the limit, or with the highest one that this process may give itself. What is made
    meanwhile stays; a program that it starts later has the limit that it would have had."""
    before = resource.getrlimit(LIMIT)
    try:
        resource.setrlimit(LIMIT, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        # Whoever has no CAP_SYS_RESOURCE.
        with suppress(ValueError, OSError):
            resource.setrlimit(LIMIT, (before[1], before[1]))
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            resource.setrlimit(LIMIT, before)
