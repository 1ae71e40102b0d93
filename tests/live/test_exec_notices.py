"""Who hears that a program has started goes on with it, and the next is heard of meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from qtrace.monitor.exec_notices import ExecNotices, Work
from tests.limits import TIMEOUT_S

pytestmark = pytest.mark.bpf

# No other test's programs have this name.
NAME = "qemu-notices"


def test_what_is_done_with_one_that_has_started_keeps_no_other_from_being_heard_of(
    tmp_path: Path,
) -> None:
    program = tmp_path / NAME
    shutil.copy2(shutil.which("true") or "true", program)
    heard: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[int] = SimpleQueue()
    goes_on = threading.Event()

    def started(pid: int, name: str, time_ns: int) -> Work | None:
        assert time_ns
        if name != NAME:
            return None
        heard.put(pid)

        def work() -> None:
            goes_on.wait(TIMEOUT_S)
            done.put(pid)

        return work

    notices = ExecNotices(started)
    try:
        pids = []
        for _ in range(3):
            process = subprocess.Popen([program])
            pids.append(process.pid)
            assert heard.get(timeout=TIMEOUT_S) == process.pid
            process.wait()
        assert done.empty()
        goes_on.set()
        assert {done.get(timeout=TIMEOUT_S) for _ in pids} == set(pids)
    finally:
        goes_on.set()
        notices.close()
    subprocess.run([program], check=True)
    assert heard.empty()
