"""The libraries that setup.sh brought, for these tests and the processes that they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

LIBRARIES = Path(__file__).parents[2] / ".cache/fleet"


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    """Workers get the path from PYTHONPATH."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(LIBRARIES), *filter(None, known)])


if LIBRARIES.is_dir():
    sys.path.insert(0, str(LIBRARIES))
