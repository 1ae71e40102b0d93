"""What `make test` runs is decided by names: one that is no test's any more is missed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import FIRST, SECOND, SHOWN, check_listed


def collected(*names: str, args: tuple[str, ...] = ("tests",)) -> tuple[Any, Any]:
    """A configuration and items of tests/live/test_steer.py."""
    path = Path("tests/live/test_steer.py")
    items = [SimpleNamespace(path=path, name=name) for name in names]
    return SimpleNamespace(args=args, getoption=lambda _name, default: default), items


def test_the_names_that_are_there_are_found() -> None:
    check_listed(*collected(SHOWN["test_steer.py"], "test_other"))


@pytest.mark.skipif(FIRST == SECOND, reason="both QEMUs are of one version")
def test_a_name_that_is_no_tests_is_missed() -> None:
    with pytest.raises(pytest.UsageError, match=r"test_steer\.py::test_each_run"):
        check_listed(*collected("test_other"))


def test_who_asks_for_one_test_gets_it() -> None:
    check_listed(*collected("test_other", args=("tests/live/test_steer.py::test_other",)))
