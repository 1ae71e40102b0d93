"""The folder for what qtrace can make again: scans, merged kernel headers."""

from __future__ import annotations

import os
import pwd
from pathlib import Path


def cache_folder() -> Path:
    """This user's folder ($XDG_CACHE_HOME/qtrace or ~/.cache/qtrace), not made yet.

    Under ``sudo`` the home folder in the environment may be someone else's, who could put
    there what root then compiles or trusts: root uses a folder of root's only.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    existing = next(parent for parent in (base, *base.parents) if parent.exists())
    if os.geteuid() == 0 and existing.stat().st_uid != 0:
        base = Path(pwd.getpwuid(0).pw_dir) / ".cache"
    return base / "qtrace"
