"""A client that gives its QEMU no rest costs no verdict: each run is counted by bpftrace, too."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.lab.guest import Accelerator, Guest
from qtrace.sites.scan_cache import scan_module
from tests.live.support.attached import WATCHED, attached, watched_half
from tests.live.support.spinning import spin

pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

FEW, MANY, RUNS, BUSY = 200, 1500, 20, 2


def test_back_to_back_saves_are_all_recorded_and_judged(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path
) -> None:
    runs, half, lost = recorded_and_counted(qemu_binary, accel, FEW, tmp_path / "t.csv")
    assert half["scheduled"] == sum(half["verdicts"].values()) == runs == FEW
    assert "inconclusive" not in half["verdicts"]
    assert lost == 0


@pytest.mark.soak
@pytest.mark.parametrize("beside", ["alone", "two busy processes", "--all"])
def test_1500_back_to_back_saves_cost_no_verdict(
    qemu_binary: Path,
    accel: Accelerator,
    beside: str,
    tmp_path: Path,
    soak_row: Callable[..., None],
) -> None:
    good, unlike, lost = 0, [], 0
    verdicts: Counter[str] = Counter()
    options = ("--all",) if beside == "--all" else ()
    with busy(BUSY if beside == "two busy processes" else 0):
        for number in range(RUNS):
            trace = tmp_path / f"{number}.parquet"
            runs, half, lost_here = recorded_and_counted(qemu_binary, accel, MANY, trace, *options)
            trace.unlink()
            verdicts.update(half["verdicts"])
            lost += lost_here
            judged = sum(half["verdicts"].values())
            if half["scheduled"] == judged == runs == MANY and not half["verdicts"].get(
                "inconclusive"
            ):
                good += 1
            else:
                unlike.append((number, runs, half))
    soak_row(
        "1,500 saves under a client that spins, as bpftrace counts them",
        f"{good} of {RUNS} runs, {verdicts['inconclusive']} inconclusive, {lost} events lost",
    )
    assert not unlike


def recorded_and_counted(
    qemu: Path, accel: Accelerator, saves: int, trace: Path, *options: str
) -> tuple[int, dict[str, object], int]:
    """How often bpftrace saw the callback entered, what qtrace says of it, and what it lost."""
    with (
        Guest(qemu, accel) as guest,
        counting(qemu, guest.pid) as counts,
        attached(guest.pid, "-o", trace, *options) as attach,
    ):
        spin(guest.second_qmp_socket, saves)
        _status, report, _err = attach.end()
    half = watched_half(report)
    return counts[WATCHED], half, report["lost_events"]


@contextmanager
def counting(qemu: Path, pid: int) -> Iterator[Counter[str]]:
    """Count the runs of one process's callback; filled when it ends."""
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed: apt-get install bpftrace")
    halves = scan_module(Module(Elf(qemu), 0)).bottom_halves
    (callback,) = {half.callback for half in halves if half.name == WATCHED}
    # An interval comes when the probe is set; and a bpftrace that nothing wakes may miss a signal.
    script = (
        f"uprobe:{qemu}:{callback:#x} /pid == {pid}/ {{ @runs = count(); }} "
        'interval:ms:100 { printf("armed\\n"); }'
    )
    counts: Counter[str] = Counter()
    # --unsafe: bpftrace refuses addresses in stripped binaries otherwise.
    command = ["bpftrace", "--unsafe", "-e", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        try:
            while "armed" not in (line := process.stdout.readline()):
                assert line, "bpftrace has ended"
            yield counts
        finally:
            process.send_signal(signal.SIGINT)
            out, _err = process.communicate(timeout=60)
    found = re.search(r"@runs: (\d+)", out)
    counts[WATCHED] = int(found[1]) if found else 0


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that want a processor each."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
