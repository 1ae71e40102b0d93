"""Waiting for descriptors, of which a process may have many."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from qtrace.machine.readable import readable

# select(2) knows none from here on.
FAR = 1024


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose read end has a large number."""
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(high, FAR + 64), high))
    reads, writes = os.pipe()
    far = os.dup2(reads, FAR + 8)
    os.close(reads)
    try:
        yield far, writes
    finally:
        os.close(far)
        os.close(writes)
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))


def test_a_descriptor_beyond_1024_is_waited_for(pipe: tuple[int, int]) -> None:
    far, writes = pipe
    assert readable([far], 0) == []
    os.write(writes, b".")
    assert readable([far], 10) == [far]


def test_what_has_a_descriptor_is_given_back_itself(pipe: tuple[int, int]) -> None:
    far, writes = pipe
    os.write(writes, b".")
    with os.fdopen(os.dup(far), "rb") as file:
        assert readable([file, writes], 10) == [file]
