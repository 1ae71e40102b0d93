"""Layouts are kept by build id and code, and are what the code shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.inspection.layout_cache import aio_layout, block_layout
from qtrace.qemu.aio.calibration import calibrate as calibrate_aio
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.block.block_calibration import calibrate as calibrate_block
from qtrace.qemu.block.block_layout import BlockLayout

LOW, HIGH = 0x5500_0000_0000, 0x5600_0000_0000


@pytest.mark.qemu
@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"code_hash": "", "facts": {}}', '{"facts": {"nodes": "x"}}'],
)
@pytest.mark.parametrize(
    ("layout", "calibrate"), [(aio_layout, calibrate_aio), (block_layout, calibrate_block)]
)
def test_a_kept_layout_is_that_of_the_code_wherever_it_is_mapped(
    qemu_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str,
    layout: Callable[[Module], Layout | BlockLayout],
    calibrate: Callable[[ModuleDisassembly], Layout | BlockLayout],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = Elf(qemu_binary.with_name("qemu-img"))
    shown = calibrate(ModuleDisassembly(Module(program, HIGH)))
    assert layout(Module(program, LOW)) != shown
    (kept,) = (tmp_path / "qtrace").iterdir()
    if damage:
        kept.write_text(damage)
    assert layout(Module(program, HIGH)) == shown


@pytest.mark.qemu
def test_it_is_read_from_what_was_kept(
    qemu_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = Module(Elf(qemu_binary.with_name("qemu-img")), 0)
    first = block_layout(module)
    (kept,) = (tmp_path / "qtrace").iterdir()
    kept.write_text(kept.read_text().replace(f'"node_next": {first.node_next}', '"node_next": 8'))
    assert block_layout(module) == replace(first, node_next=8)
