"""Names of static functions in a stripped QEMU: those that a scan of the same binary has kept.

gdb's Python cannot scan (no disassembler library); ``qtrace scan``, ``attach`` and ``inspect`` do,
and keep what they find. It is believed where the program has every instruction that stands in it.
"""

from __future__ import annotations

import bisect
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import gdb

from qtrace.gdbscripts.gdb_target import BUILD_ID, GdbMemory, GdbProgram, file_code
from qtrace.host.cache import cache_folder

# To tell where the program lies from where the scan has it.
SCHEDULER = "aio_bh_schedule_oneshot_full"
# An ELF note: sizes and type, then "GNU" and the build id.
NOTE_HEADER = 16
# .eh_frame_hdr as linkers write it: version, and how its parts are encoded.
HEADER = struct.Struct("<4B2i")
ENCODINGS = (1, 0x1B, 0x03, 0x3B)


class StaticNames:
    """The names, by run-time address, and the starts of all of the program's functions."""

    def __init__(self, names: Mapping[int, str], starts: Sequence[int]) -> None:
        self.names = names
        self._starts = starts

    def around(self, pc: int) -> tuple[str, int]:
        """Name and offset of the function that an address is in; an empty name for any other."""
        index = bisect.bisect_right(self._starts, pc) - 1
        start = self._starts[index] if index >= 0 else 0
        return self.names.get(start, ""), pc - start


_known: dict[tuple[str, int], StaticNames] = {}


def static_names() -> StaticNames:
    """Those of the program; empty where no scan was kept, or only one of other code."""
    program = GdbProgram()
    sections = program.sections()
    key = (str(gdb.current_progspace().filename), sections.get(".text", (0, 0))[0])
    if key not in _known:
        with file_code():
            names = _kept(program.address(SCHEDULER) or 0, _build_id(sections))
            _known[key] = StaticNames(names, _function_starts(sections) if names else ())
    return _known[key]


def _build_id(sections: Mapping[str, tuple[int, int]]) -> str:
    start, end = sections.get(BUILD_ID, (0, 0))
    return GdbMemory().read(start, end - start)[NOTE_HEADER:].hex()


def _kept(scheduler: int, build_id: str) -> dict[int, str]:
    if not (scheduler and build_id):
        return {}
    try:
        files = sorted(cache_folder().glob(f"scan-v*-{build_id}-*.json"))
    except (OSError, RuntimeError, StopIteration):
        # Nobody's home.
        return {}
    for file in reversed(files):
        try:
            scan = json.loads(file.read_text())
            bias = scheduler - scan["scheduler"]
            if _agrees(scan, bias):
                return _names(scan, bias)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # It cannot be read, or is of another version.
            continue
    return {}


def _agrees(scan: dict[str, Any], bias: int) -> bool:
    """Whether the program has the code that was scanned, wherever something is known of it."""
    memory = GdbMemory()
    halves = scan["bottom_halves"]
    places = [(site["address"], site["code"]) for half in halves for site in half["sites"]]
    places += [(half["callback"], half["code"]) for half in halves if half["callback"]]
    return bool(places) and all(
        memory.read(address + bias, len(code) // 2).hex() == code for address, code in places
    )


def _names(scan: dict[str, Any], bias: int) -> dict[int, str]:
    """As ``Scan.static_names``."""
    named = [(half["callback"], half["name"]) for half in scan["bottom_halves"]]
    named += [(address, name) for name, address in scan["threads"].items()]
    return {address + bias: name for address, name in named if address and name.isidentifier()}


def _function_starts(sections: Mapping[str, tuple[int, int]]) -> list[int]:
    """From the sorted table that unwinders search."""
    start, end = sections.get(".eh_frame_hdr", (0, 0))
    raw = GdbMemory().read(start, end - start)
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[:4] != ENCODINGS:
        return []
    count = HEADER.unpack_from(raw)[5]
    table = raw[HEADER.size : HEADER.size + 8 * count]
    return [start + at for at, _entry in struct.iter_unpack("<2i", table[: len(table) // 8 * 8])]
