"""What the probes of `--all` cost the target, measured."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from qtrace.machine.stat_file import STIME, UTIME, stat_fields
from qtrace.record.all_events.all_program import load_all, slot_type
from qtrace.record.all_events.all_recorder import AllRecorder
from qtrace.record.ebpf.rings import Rings
from qtrace.record.ebpf.uprobes import Uprobes
from qtrace.sites.all_plan import AllPlan

# mov ecx, esi; again: push rbp; pop rbp; dec ecx; jnz again; ret
LOOP = bytes.fromhex("89f1 55 5d ffc9 75fa c3")
SITE = 2
# Fewer than the records that one CPU's smallest ring buffer holds.
ROUNDS, REPEATS, PAGES = 2_000, 5, 256


def cost_per_hit(plan: AllPlan) -> float:
    """Seconds that one hit of an emulated site takes on this machine, its record included.

    A second copy of the program runs on a loop of ours, and is dropped again.
    """
    program = load_all(plan, PAGES)
    rings = Rings(program, slot_type())
    with tempfile.NamedTemporaryFile(prefix="qtrace-loop-") as file:
        file.write(LOOP)
        file.flush()
        # Not writable: such a mapping takes no uprobe.
        access = mmap.PROT_READ | mmap.PROT_EXEC
        code = mmap.mmap(file.fileno(), len(LOOP), mmap.MAP_PRIVATE, access)
        start = np.frombuffer(code, np.uint8).ctypes.data
        loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(start)
        bare = _timed(loop)
        uprobes = Uprobes(os.getpid(), file.name, lambda offset: offset)
        uprobes.attach(program.functions["co_schedule"], {SITE: "the loop that is timed"})
        probed = _timed(loop)
        uprobes.close()
    rings.close()
    program.close()
    return max(probed - bare, 0.0) / ROUNDS


def _timed(loop: Any) -> float:
    """The best of a few: whatever else runs here only adds."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        loop(None, ROUNDS)
        best = min(best, time.perf_counter() - began)
    return best


class Meter:
    """The share of the target's CPU time that goes into the probes."""

    def __init__(self, recorder: AllRecorder, pid: int) -> None:
        self._recorder, self._pid = recorder, pid
        self._cost = cost_per_hit(recorder.plan)
        self._hits, self._cpu = recorder.counts.produced, self._cpu_time()

    def percent(self) -> float:
        """Since the last call: their time, in percent of what the target's own work took."""
        hits, cpu = self._recorder.counts.produced, self._cpu_time()
        ours = (hits - self._hits) * self._cost
        own = max(cpu - self._cpu - ours, 0.001)
        self._hits, self._cpu = hits, cpu
        return 100 * ours / own

    def _cpu_time(self) -> float:
        try:
            text = Path(f"/proc/{self._pid}/stat").read_text()
        except OSError:
            return self._cpu
        fields = stat_fields(text)
        return (int(fields[UTIME]) + int(fields[STIME])) / os.sysconf("SC_CLK_TCK")


class MeterAhead:
    """A meter that is made beside the recording: to compile its loop takes half a second."""

    def __init__(self, recorder: AllRecorder, pid: int) -> None:
        self._meter: Future[Meter] = Future()
        threading.Thread(target=self._make, args=(recorder, pid), daemon=True).start()

    def percent(self) -> float | None:
        """See ``Meter.percent``; None as long as there is none."""
        return self._meter.result().percent() if self._meter.done() else None

    def _make(self, recorder: AllRecorder, pid: int) -> None:
        try:
            self._meter.set_result(Meter(recorder, pid))
        except BaseException as error:
            self._meter.set_exception(error)
