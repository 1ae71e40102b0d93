"""The folder for what qtrace can make again: scans, merged kernel headers."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """This user's folder ($XDG_CACHE_HOME/qtrace or ~/.cache/qtrace), not made yet.

    Under ``sudo`` the home folder in the environment may be someone else's, who could put
    there what root then compiles or trusts: root uses a folder of root's only.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Path.exists() raises where a folder on the way is closed to this user.
    existing = next(parent for parent in (base, *base.parents) if os.path.exists(parent))
    if os.geteuid() == 0 and existing.stat().st_uid != 0:
        base = Path(pwd.getpwuid(0).pw_dir) / ".cache"
    return base / "qtrace"


def load_json(name: str) -> Any:
    """What was kept under a name; None when there is nothing readable."""
    try:
        return json.loads((cache_folder() / name).read_text())
    except (OSError, ValueError):
        return None


def store_json(name: str, data: dict[str, Any]) -> None:
    """Keep data under a name, whole or not at all; a cache that cannot be written is no error."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".part-", delete=False) as file:
            json.dump(data, file)
        os.replace(file.name, folder / name)
    except OSError:
        pass
