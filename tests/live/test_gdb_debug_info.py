"""The gdb commands on a program with debug info, where the code shows little."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.machine.thread_files import read_system_call
from tests.live.support.attached import wait_for
from tests.live.support.gdb_session import Target, gdb, live

pytestmark = pytest.mark.gdb

LIKE_QEMU = Path(__file__).parent / "support/like_qemu.c"
PPOLL = 271


@pytest.mark.parametrize("optimisation", ["-O0", "-O2"])
def test_debug_info_tells_what_the_code_does_not_show(optimisation: str, tmp_path: Path) -> None:
    with like_qemu(optimisation, tmp_path) as target:
        printed = gdb(target, "aio contexts", "aio bh", "aio threads", "aio why", "aio jobs")
        stops = gdb(target, "aio break sample_bh", "aio break sample_bh --run")
    assert re.search(r"^iohandler +0x\w+ +1 +\S+ +\S+ +\d+ \(program\)", printed, re.MULTILINE)
    assert re.search(r"^sample_bh +iohandler +sample_bh +0x", printed, re.MULTILINE)
    assert "main       sleeps in ppoll(), polling `main`" in printed
    assert "polling `main`; behind it wait sample_bh in `iohandler`" in printed
    assert "aio jobs: the code of this QEMU does not show jobs" in printed
    scheduled, runs = stops.splitlines()
    assert f"like_qemu.c, line {line_of('iohandler_get_aio_context(), sample_bh')}." in scheduled
    assert line_of("void sample_bh") < int(runs.rstrip(".").split()[-1]) < line_of("context_new(")


def line_of(text: str) -> int:
    """The first line of like_qemu.c with this text."""
    lines = LIKE_QEMU.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def _sleeps_in_ppoll(pid: int) -> bool:
    call = read_system_call(pid, pid)
    return call is not None and call.number == PPOLL


@contextmanager
def like_qemu(optimisation: str, folder: Path) -> Iterator[Target]:
    """like_qemu.c compiled with debug info, hanging."""
    program = folder / "program"
    command = ["gcc", "-g", optimisation, str(LIKE_QEMU), "-o", str(program)]
    subprocess.run(command, check=True)
    with subprocess.Popen([program]) as process:
        try:
            wait_for(lambda: _sleeps_in_ppoll(process.pid))
            yield live(process.pid, program)
        finally:
            process.kill()
