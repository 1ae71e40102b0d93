"""Whether a target is as it was: its code and its threads' states, read without stopping it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from qtrace.machine.arch_x86_64 import BREAKPOINT
from qtrace.machine.stat_file import state_letter
from qtrace.process.process import Process


def changed_code(process: Process) -> dict[int, int]:
    """The bytes of the executable's running code that differ from its file.

    Returns:
        The byte that is there, by run-time address. A uprobe shows as ``BREAKPOINT``.
    """
    module = process.binary
    changed = {}
    for segment in module.elf.code:
        there = process.memory.read(segment.vaddr + module.bias, segment.filesz)
        running = np.frombuffer(there, np.uint8)
        file = np.frombuffer(module.elf.data, np.uint8, len(running), segment.offset)
        for offset in np.flatnonzero(running != file):
            changed[segment.vaddr + module.bias + int(offset)] = int(running[offset])
    return changed


def left_behind(process: Process, before: dict[int, int], own: frozenset[int]) -> dict[int, int]:
    """What has been changed in the code since ``before`` and is not some uprobe's.

    Args:
        before: ``changed_code`` of then.
        own: run-time addresses at which breakpoints were set; no uprobe was there.
    """
    return {
        address: byte
        for address, byte in changed_code(process).items()
        if address in own or (before.get(address) != byte and byte != BREAKPOINT)
    }


def thread_states(pid: int) -> dict[int, str]:
    """The state letter of each thread (proc(5)), empty when the process is gone."""
    states = {}
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            stat = Path(f"/proc/{pid}/task/{task}/stat").read_text(errors="replace")
            states[int(task)] = state_letter(stat)
    except OSError:
        pass
    return states


def is_stopped(pid: int) -> bool:
    """Whether it is stopped by a signal (T), as SIGSTOP does."""
    return "T" in thread_states(pid).values()


def is_traced_or_stopped(pid: int) -> bool:
    """Whether any thread is kept from running by a signal (T) or a tracer (t)."""
    return not {"T", "t"}.isdisjoint(thread_states(pid).values())
