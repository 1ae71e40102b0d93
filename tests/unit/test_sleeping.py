"""Whether a stopped thread slept in its system call: by its result, as the kernel leaves it."""

from __future__ import annotations

import pytest

from qtrace.machine.syscalls import sleeps

READ, WRITE, PPOLL, SENDMSG, FUTEX, IO_GETEVENTS, IO_SUBMIT = 0, 1, 271, 46, 202, 208, 209
EPOLL_WAIT, IO_URING_ENTER, FSTATAT = 232, 426, 262
MINUS = 1 << 64
ANY = (7, 0x1000, 100, 0, 0, 0)
# fd, to_submit, min_complete, flags (IORING_ENTER_GETEVENTS).
SUBMIT_AND_WAIT, WAIT, SUBMIT = (9, 2, 1, 1, 0, 8), (9, 0, 1, 1, 0, 8), (9, 2, 0, 0, 0, 8)


@pytest.mark.parametrize("result", [-4, -512, -513, -514, -516])
@pytest.mark.parametrize("number", [READ, PPOLL, FUTEX, FSTATAT, IO_URING_ENTER])
def test_one_that_was_interrupted_slept(number: int, result: int) -> None:
    assert sleeps(number, result + MINUS, ANY)


@pytest.mark.parametrize(
    ("number", "result", "arguments"),
    [
        (IO_URING_ENTER, 2, SUBMIT_AND_WAIT),
        (IO_URING_ENTER, 1, SUBMIT_AND_WAIT),
        (WRITE, 60, ANY),
        (READ, 60, ANY),
        (SENDMSG, 60, ANY),
        (IO_GETEVENTS, 1, (7, 3, 16, 0x1000, 0, 0)),
        (IO_SUBMIT, 1, (7, 2, 0x1000, 0, 0, 0)),
    ],
)
def test_one_that_returns_how_much_it_had_done_may_have_slept(
    number: int, result: int, arguments: tuple[int, ...]
) -> None:
    assert sleeps(number, result, arguments)


@pytest.mark.parametrize(
    ("number", "result", "arguments"),
    [
        (IO_URING_ENTER, 0, WAIT),
        (IO_URING_ENTER, 2, SUBMIT),
        (IO_URING_ENTER, MINUS - 62, SUBMIT_AND_WAIT),
        (WRITE, 100, ANY),
        (READ, 0, ANY),
        (READ, MINUS - 11, ANY),
        (PPOLL, 0, ANY),
        (PPOLL, 3, ANY),
        (EPOLL_WAIT, 0, ANY),
        (FUTEX, 0, ANY),
        (FUTEX, MINUS - 110, ANY),
        (IO_GETEVENTS, 3, (7, 3, 16, 0x1000, 0, 0)),
    ],
)
def test_any_other_result_is_of_a_call_that_had_returned(
    number: int, result: int, arguments: tuple[int, ...]
) -> None:
    assert not sleeps(number, result, arguments)
