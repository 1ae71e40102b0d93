"""QEMUs that several test files look at, started once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.support.gdb_cases import Hung


@pytest.fixture(scope="session")
def hung() -> Iterator[Hung]:
    with ExitStack() as stack:
        yield Hung(stack)
