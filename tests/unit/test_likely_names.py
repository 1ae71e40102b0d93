"""Likely names of functions without a symbol, measured where the truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.likely_names import likely_names
from qtrace.binary.module import Module
from qtrace.qemu.aio.mechanics import is_unnamed, telling

pytestmark = pytest.mark.qemu

# Static in every QEMU, and on the stacks of jobs and of devices' requests.
STATIC = ("job_co_entry", "job_do_yield_locked", "bdrv_driver_pwritev")


def test_nineteen_of_twenty_are_right(qemu_binary: Path) -> None:
    module = Module(Elf(qemu_binary), 0)
    names = likely_names(module)
    exported = {}
    for start, name in names.items():
        found = module.symbols.lookup(start)
        if found is not None and not found[1]:
            exported[start] = name
    right = [start for start, name in exported.items() if module.symbols.address(name) == start]
    assert len(exported) > 1000
    assert len(right) / len(exported) >= 0.95
    # The others are what it is for: as many, and none bears the name of a function with a symbol.
    static = {start: name for start, name in names.items() if start not in exported}
    assert len(static) > 1000
    assert len(set(STATIC) & set(static.values())) >= 2
    assert not any(module.symbols.address(name) for name in list(static.values())[:100])


def test_a_likely_name_decides_nothing() -> None:
    frame = "qemu-system-x86_64@0x98c19f (job_finish_sync?)"
    assert is_unnamed(frame)
    assert telling([frame]) == []
