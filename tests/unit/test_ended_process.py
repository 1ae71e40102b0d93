"""Whatever fails because a process ends says that it has ended, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from qtrace.errors import HasEnded, TargetError
from qtrace.process.process import unless_it_ends

FAILURES = [FileNotFoundError("/proc/1/exe"), ProcessLookupError("/proc/1/mem"),
            TargetError("it has other code than its file", "end the other recording")]  # fmt: skip


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_at_its_end_says_so(
    process: subprocess.Popen[bytes], failure: Exception, reaped: bool
) -> None:
    process.send_signal(signal.SIGKILL)
    if reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    text = f"process {process.pid} has ended"
    with pytest.raises(HasEnded, match=text), unless_it_ends(process.pid):
        raise failure


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_while_it_lives_stays_what_it_is(
    process: subprocess.Popen[bytes], failure: Exception
) -> None:
    with pytest.raises(type(failure)) as raised, unless_it_ends(process.pid):
        raise failure
    assert raised.value is failure
