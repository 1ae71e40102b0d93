"""Layouts of the block layer kept between runs, keyed by build id and a hash of the code."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.binary.module_code import ModuleDisassembly
from qtrace.host.cache import load_json, store_json
from qtrace.qemu.block.block_calibration import calibrate
from qtrace.qemu.block.block_layout import BlockLayout

# Raised whenever what calibration finds, or means, changes.
VERSION = 1


def block_layout(module: Module) -> BlockLayout:
    """The layout of a binary where it is mapped, from the cache when its very code was read
    before."""
    elf = module.elf
    name = f"block-layout-v{VERSION}-{elf.build_id or 'none'}-{elf.code_hash}.json"
    kept = _load(name, elf)
    if kept is None:
        kept = calibrate(ModuleDisassembly(module)).moved(-module.bias)
        store_json(name, {"code_hash": elf.code_hash, "facts": asdict(kept)})
    return kept.moved(module.bias)


def _load(name: str, elf: Elf) -> BlockLayout | None:
    data = load_json(name)
    facts = data.get("facts") if isinstance(data, dict) else None
    if not isinstance(facts, dict) or data.get("code_hash") != elf.code_hash:
        return None
    whole = facts.keys() == {field.name for field in fields(BlockLayout)}
    return BlockLayout(**facts) if whole and all(map(_is_fact, facts.values())) else None


def _is_fact(value: Any) -> bool:
    return value is None or isinstance(value, int)
