"""What the monitor says, where nobody reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from qtrace.monitor.log import Log

FULL = b"x" * (1 << 20)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its two ends; it is full."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    while True:
        try:
            os.write(writes, FULL)
        except BlockingIOError:
            break
    os.set_blocking(writes, True)
    try:
        yield reads, writes
    finally:
        os.close(reads)
        os.close(writes)


def lines(end: int) -> Iterator[str]:
    with os.fdopen(os.dup(end)) as file:
        for line in file:
            yield line.lstrip("x").rstrip("\n")


def test_nobody_waits_for_a_reader_and_what_was_left_out_is_counted(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    log = Log(writes, most=10)
    for number in range(100):
        log.say(f"line {number}")
    # One more may be in the writer's hands.
    assert log.dropped in (89, 90)
    read = lines(reads)
    told = [next(read) for _ in range(100 - log.dropped + 1)]
    assert f"warning: {log.dropped} lines were left out: nobody read them" in told
    assert [line for line in told if line.startswith("line")] == [
        f"line {number}" for number in range(100 - log.dropped)
    ]


def test_the_end_does_not_wait_for_a_reader(pipe: tuple[int, int]) -> None:
    log = Log(pipe[1])
    log.say("a line")
    log.close()


def test_whoever_has_closed_it_is_told_nothing() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    log = Log(writes)
    log.say("a line")
    log.close()
    assert log.dropped == 0
    os.close(writes)
