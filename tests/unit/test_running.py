"""Stacks of threads that run, by the kernel's clock."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qtrace.machine.arch_x86_64 import RETURN_ADDRESS, RSP
from qtrace.process.running_stacks import PERIOD_NS, RunningThreads

BUSY = "print('runs', flush=True)\nwhile True: pass"
ASLEEP = "print('runs', flush=True)\ninput()"


@pytest.mark.skipif(os.geteuid() != 0, reason="sampling another process takes CAP_PERFMON")
@pytest.mark.parametrize("code", [BUSY, ASLEEP], ids=["busy", "asleep"])
def test_a_thread_that_runs_is_sampled_and_one_that_sleeps_is_not(code: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        running = RunningThreads([process.pid])
        try:
            assert running.tids == {process.pid}
            # By its own processor time, not by ours: the machine may be busy.
            used = processor_time(process.pid)
            while code == BUSY and processor_time(process.pid) < used + 3 * PERIOD_NS:
                pass
            samples = running.take()[process.pid]
        finally:
            running.close()
            process.kill()
    if code == ASLEEP:
        assert len(samples) <= 1
        return
    assert len(samples) >= 2
    for sample in samples:
        assert sample.registers[RETURN_ADDRESS]
        assert sample.stack.word(sample.registers[RSP]) is not None


def processor_time(pid: int) -> int:
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0])


def test_who_may_not_be_sampled_or_is_not_there_has_none() -> None:
    running = RunningThreads([2**22 + 1])
    assert running.tids == set()
    assert running.take() == {}
    running.close()
