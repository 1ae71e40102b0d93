"""Scans kept between runs, keyed by build id and a hash of the code."""

from __future__ import annotations

from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.host.cache import load_json, store_json
from qtrace.process.process import read_version
from qtrace.sites.scan import Scan

# Raised whenever a scan's content or meaning changes.
VERSION = 7


def scan_module(module: Module) -> Scan:
    """The scan of a binary, from the cache when its very code was scanned before.

    Raises:
        NotQemu, ScanFailed: see ``scan_binary``.
    """
    elf = module.elf
    name = f"scan-v{VERSION}-{elf.build_id or 'none'}-{elf.code_hash}.json"
    cached = _load(name, elf)
    if cached is not None:
        return cached
    # Only this needs a disassembler.
    from qtrace.sites.scanner import scan_binary

    scan = scan_binary(module, read_version(elf))
    store_json(name, scan.to_json())
    return scan


def _load(name: str, elf: Elf) -> Scan | None:
    try:
        scan = Scan.from_json(load_json(name))
    except (ValueError, KeyError, TypeError):
        return None
    # A cache is only trusted where the file's own bytes agree with it.
    agrees = scan.code_hash == elf.code_hash and all(
        elf.read(site.address, len(site.code) // 2).hex() == site.code
        for half in scan.bottom_halves
        for site in half.sites
    )
    return scan if agrees else None
