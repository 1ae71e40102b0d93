"""Layouts kept between runs, keyed by build id and a hash of the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, TypeVar

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.host.cache import load_json, store_json
from qtrace.qemu.aio.layout import Layout
from qtrace.qemu.block.block_layout import BlockLayout

# Raised whenever what calibration finds, or means, changes.
VERSION = 4

L = TypeVar("L", Layout, BlockLayout)


def aio_layout(module: Module) -> Layout:
    """The event loops' layout as the code of a binary shows it, where that is mapped."""
    return _layout("aio", Layout, _calibrate_aio, module)


def block_layout(module: Module) -> BlockLayout:
    """Likewise the block layer's."""
    return _layout("block", BlockLayout, _calibrate_block, module)


# What is kept needs no disassembler.


def _calibrate_aio(module: Module) -> Layout:
    from qtrace.binary.module_code import ModuleDisassembly
    from qtrace.qemu.aio.calibration import calibrate

    return calibrate(ModuleDisassembly(module))


def _calibrate_block(module: Module) -> BlockLayout:
    from qtrace.binary.module_code import ModuleDisassembly
    from qtrace.qemu.block.block_calibration import calibrate

    return calibrate(ModuleDisassembly(module))


def _layout(kind: str, layout: type[L], calibrate: Callable[[Module], L], module: Module) -> L:
    """From the cache when its very code was read before."""
    elf = module.elf
    name = f"{kind}-layout-v{VERSION}-{elf.build_id or 'none'}-{elf.code_hash}.json"
    kept = _load(name, elf, layout)
    if kept is None:
        kept = calibrate(module).moved(-module.bias)
        store_json(name, {"code_hash": elf.code_hash, "facts": asdict(kept)})
    return kept.moved(module.bias)


def _load(name: str, elf: Elf, layout: type[L]) -> L | None:
    data = load_json(name)
    facts = data.get("facts") if isinstance(data, dict) else None
    if not isinstance(facts, dict) or data.get("code_hash") != elf.code_hash:
        return None
    kinds: dict[str, Any] = {field.name: field.type for field in fields(layout)}
    whole = facts.keys() == kinds.keys()
    return layout(**facts) if whole and all(_is_fact(kinds[n], facts[n]) for n in facts) else None


def _is_fact(kind: str, value: Any) -> bool:
    """Whether a value is of a field's type: ``int | None``, ``str | None``, ``int``."""
    if value is None:
        return "None" in kind
    return isinstance(value, str if "str" in kind else int)
