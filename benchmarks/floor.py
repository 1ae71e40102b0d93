"""The floor of what probes can cost: an empty program at the same places."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from qtrace.binary.module import Module
from qtrace.host.bpf_syscall import SMALLEST_PROGRAM, TRACE_UPROBE_MULTI, load_program
from qtrace.host.uprobe_links import links_work
from qtrace.record.ebpf.uprobes import Uprobes


@contextmanager
def empty_at(pid: int, exe: str, module: Module, places: Mapping[int, str]) -> Iterator[None]:
    """``places``: link-time addresses, and what to call them."""
    empty = load_program(SMALLEST_PROGRAM, "empty", TRACE_UPROBE_MULTI if links_work() else 0)
    uprobes = Uprobes(pid, exe, module.elf.offset_of)
    try:
        uprobes.attach(empty, places)
        yield
    finally:
        uprobes.close()
        os.close(empty)
