"""A question that a process of its own answers."""

from __future__ import annotations

import os
import pickle
import select
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from qtrace.errors import NoMatch, NotQemu, OutputExists, QtraceError, TargetError
from qtrace.host.forked import Forked
from qtrace.host.unanswered import NoAnswer

ERRORS = [
    NoMatch("no bottom half is called that", "qtrace scan lists them"),
    NotQemu("process 7"),
    OutputExists("t.csv"),
    NoAnswer("/proc/7/mem", 5.0),
]


def raising(error: Exception) -> NoReturn:
    raise error


def ended(pid: int) -> bool:
    """Whether a process ends within a time that is none of its own."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 30)[0])
    finally:
        os.close(fd)


def children() -> set[int]:
    """Those of this thread, which forks."""
    return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}


def test_the_answer_comes_from_a_process_that_is_gone_then() -> None:
    before = children()
    with Forked("tell its number", lambda: (os.getpid(), os.getppid())) as forked:
        pid, parent = forked.result()
        assert pid != parent == os.getpid()
    assert children() == before


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_whole(error: QtraceError) -> None:
    with (
        Forked("fail", lambda: raising(error)) as forked,
        pytest.raises(type(error)) as caught,
    ):
        forked.result()
    found = caught.value
    assert type(found) is type(error)
    assert (str(found), found.message, found.remedy) == (str(error), error.message, error.remedy)
    assert getattr(found, "pid", None) == getattr(error, "pid", None)
    assert "in raising" in "".join(found.__notes__)


def test_what_nobody_expects_comes_back_with_where_it_happened() -> None:
    class Local(Exception):
        """Cannot be pickled: it has no name that others know it by."""

    for error, kind in ((ZeroDivisionError("so"), ZeroDivisionError), (Local("so"), RuntimeError)):
        with Forked("fail", lambda e=error: raising(e)) as forked, pytest.raises(kind) as caught:
            forked.result()
        said = "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        assert "in raising" in said


def test_one_that_was_killed_is_told() -> None:
    with (
        Forked("find it", lambda: os.kill(os.getpid(), signal.SIGKILL)) as forked,
        pytest.raises(TargetError, match="the process that was to find it has been killed"),
    ):
        forked.result()


def test_signals_that_ask_for_an_end_are_left_to_the_parent() -> None:
    def question() -> str:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return "goes on"

    with Forked("go on", question) as forked:
        assert forked.result() == "goes on"


def test_one_that_never_answers_ends_with_the_context() -> None:
    began_read, began_write = os.pipe()

    def question() -> None:
        os.write(began_write, b"!")
        signal.pause()

    before = children()
    with Forked("wait", question):
        assert os.read(began_read, 1) == b"!"
        (pid,) = children() - before
    assert ended(pid)
    for fd in (began_read, began_write):
        os.close(fd)


def test_it_ends_with_its_parent() -> None:
    told_read, told_write = os.pipe()

    def question() -> None:
        os.write(told_write, pickle.dumps(os.getpid()))
        signal.pause()

    parent = os.fork()
    if parent == 0:
        try:
            Forked("wait", question).result()
        finally:
            os._exit(1)
    pid = pickle.loads(os.read(told_read, 1 << 10))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert ended(pid)
    for fd in (told_read, told_write):
        os.close(fd)
