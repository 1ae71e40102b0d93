"""Scans kept between runs: JSON files keyed by build id and a hash of the code."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from qtrace.target.cache import cache_folder
from qtrace.target.elf import Elf
from qtrace.target.maps import Module
from qtrace.target.process import read_version
from qtrace.target.scan import Scan, scan_binary

# Raised whenever a scan's content or meaning changes.
VERSION = 1


def scan_module(module: Module) -> Scan:
    """The scan of a binary, from the cache when its very code was scanned before.

    Raises:
        NotQemu, ScanFailed: see ``scan_binary``.
    """
    elf = module.elf
    path = cache_folder() / f"scan-v{VERSION}-{elf.build_id or 'none'}-{elf.code_hash}.json"
    cached = _load(path, elf)
    if cached is not None:
        return cached
    scan = scan_binary(elf, module.symbols, module.frames, read_version(elf))
    _store(path, scan)
    return scan


def _load(path: Path, elf: Elf) -> Scan | None:
    try:
        scan = Scan.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A cache is only trusted where the file's own bytes agree with it.
    agrees = scan.code_hash == elf.code_hash and all(
        elf.read(site.address, len(site.code) // 2).hex() == site.code
        for half in scan.bottom_halves
        for site in half.sites
    )
    return scan if agrees else None


def _store(path: Path, scan: Scan) -> None:
    """Whole or not at all; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=".scan-", delete=False
        ) as file:
            json.dump(scan.to_json(), file)
        os.replace(file.name, path)
    except OSError:
        pass
