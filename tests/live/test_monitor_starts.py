"""A QEMU that starts is armed before its first bottom half, by the kernel's own clock."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtrace.host.bpf_syscall import attach_raw_tracepoint
from qtrace.lab.guest import find_qemu
from qtrace.monitor.exec_notices import EXEC
from qtrace.record.ebpf.bpf_program import load_exec
from qtrace.record.ebpf.record_ring import RecordRing
from tests.limits import TIMEOUT_S
from tests.live.support.counted import own_copy
from tests.live.support.monitored import monitor, scrape, until, values

pytest.importorskip("prometheus_client")
pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

STARTS, ENOUGH = 100, 99
PAGES, SOME = 64, 1 << 20
SCRIPT = """\
uprobe:{program}:aio_bh_call /!@seen[pid]/ {{
    @seen[pid] = 1;
    printf("run %d %llu\\n", pid, nsecs);
}}
BEGIN {{ printf("begun\\n"); }}
"""


class Execs:
    """When each program was executed that may be QEMU's, as the kernel tells."""

    def __init__(self) -> None:
        self._program = load_exec(PAGES)
        self._notice = attach_raw_tracepoint(self._program.functions["on_exec"], EXEC)
        self._ring = RecordRing(self._program.maps["execs"], PAGES)
        self._layout = self._program.layouts["execs"]
        self._seen: dict[int, int] = {}

    def of(self, pid: int) -> int:
        for record in self._ring.take(SOME)[0]:
            number, time_ns = (self._number(record, name) for name in ("tgid", "time_ns"))
            self._seen[number] = time_ns
        return self._seen[pid]

    def close(self) -> None:
        os.close(self._notice)
        self._program.close()

    def _number(self, record: bytes, name: str) -> int:
        at, size = self._layout[name]
        return int.from_bytes(record[at : at + size], "little")


@contextmanager
def first_runs(program: Path) -> Iterator[Callable[[int], int]]:
    """How many nanoseconds after its exec a process has run its first bottom half."""
    execs = Execs()
    tracer = subprocess.Popen(
        ["bpftrace", "-q", "-B", "line", "--unsafe", "-e", SCRIPT.format(program=program)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    seen: dict[int, int] = {}

    def after(pid: int) -> int:
        assert tracer.stdout is not None
        while pid not in seen:
            line = tracer.stdout.readline()
            assert line, "bpftrace has ended"
            if len(words := line.split()) == 3:
                seen[int(words[1])] = int(words[2])
        return seen[pid] - execs.of(pid)

    try:
        assert tracer.stdout is not None
        while tracer.stdout.readline() != "begun\n":
            assert tracer.poll() is None, "bpftrace does not begin"
        yield after
    finally:
        tracer.terminate()
        tracer.communicate(timeout=TIMEOUT_S)
        execs.close()


def started(program: Path, url: str, name: str, first: Callable[[int], int]) -> tuple[float, float]:
    """One starts: when it was armed, and when it ran its first bottom half, in seconds."""
    guest = subprocess.Popen(
        [program, "-name", name, "-accel", "tcg,tb-size=1", "-m", "16", "-nodefaults",
         "-display", "none"], stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ran_ns = first(guest.pid)

        def armed() -> str:
            return "x" if values(scrape(url), "qtrace_vm_probes", name) > [0.0] else ""

        until(armed, "probes")
        # Of one whose start was not told it is not known.
        (armed_s,) = values(scrape(url), "qtrace_vm_armed_seconds", name) or [math.inf]
        return armed_s, ran_ns / 1e9
    finally:
        guest.kill()
        guest.wait()


@pytest.mark.soak
@pytest.mark.skipif(not shutil.which("bpftrace"), reason="apt install bpftrace")
@pytest.mark.timeout(1800)
def test_a_hundred_qemus_that_start_are_armed_before_their_first_bottom_half(
    tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    copy = own_copy(find_qemu(), tmp_path)
    with monitor() as (_, url), first_runs(copy) as first:
        # Its code is read once.
        started(copy, url, "start-first", first)
        times = [started(copy, url, f"start-{number}", first) for number in range(STARTS)]
    late = sum(armed_s >= ran_s for armed_s, ran_s in times)
    armed = sorted(armed_s for armed_s, _ in times)
    ran = sorted(ran_s for _, ran_s in times)
    soak_row(
        f"{STARTS} QEMUs that start under a monitor",
        f"{STARTS - late} armed before their first bottom half; armed after "
        f"{1000 * statistics.median(armed):.0f} ms (most {1000 * armed[-1]:.0f}), it came after "
        f"{1000 * statistics.median(ran):.0f} ms (least {1000 * ran[0]:.0f})",
    )
    assert STARTS - late >= ENOUGH
