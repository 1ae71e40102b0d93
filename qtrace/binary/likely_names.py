"""Likely names of functions without a symbol, kept by build id and a hash of the code."""

from __future__ import annotations

from qtrace.binary.module import Module
from qtrace.host.cache import load_json, store_json

# Raised whenever what is kept changes.
VERSION = 1


def likely_names(module: Module) -> dict[int, str]:
    """By the functions' link-time starts, as ``passed_names`` finds them."""
    elf = module.elf
    file = f"likely-names-v{VERSION}-{elf.build_id or 'none'}-{elf.code_hash}.json"
    kept = load_json(file)
    if isinstance(kept, dict) and all(type(name) is str for name in kept.values()):
        return {int(start): name for start, name in kept.items() if start.isdigit()}
    # Only who searches the code needs numpy and a disassembler.
    from qtrace.binary.passed_names import passed_names

    found = passed_names(module)
    store_json(file, {str(start): name for start, name in found.items()})
    return found
