"""The layout as debug info tells it, to be compared with what the code shows.

Only the compile units of a few functions are read: each of QEMU's structures is described in
the unit of the function that works on it, and reading all 2,000 units takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO, Any, cast

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.elf.elffile import ELFFile

from qtrace.binary.module import Module
from qtrace.binary.symbols import debug_file
from qtrace.host.cache import load_json, store_json
from qtrace.qemu.aio.debug_facts import MEMBERS, VARIABLES

# Raised whenever what is kept changes.
VERSION = 2
FUNCTIONS = (
    "aio_bh_poll", "aio_set_fd_handler", "qemu_coroutine_switch", "aio_co_schedule", "job_start",
    "qemu_get_aio_context", "iohandler_get_aio_context",
)  # fmt: skip
# What only a recording of every bottom half needs beside ``MEMBERS``.
MORE_MEMBERS = (("bh_ctx", "struct QEMUBH", "ctx", 0), ("bh_name", "struct QEMUBH", "name", 0))
STRUCTURES = ("DW_TAG_structure_type", "DW_TAG_typedef")
DW_OP_ADDR = 0x03


def facts_of_debug_info(module: Module) -> dict[str, int]:
    """Offsets and run-time addresses by the names of ``Layout``, and ``bh_ctx``, ``bh_name``;
    empty without debug info.

    It is the binary's own, or the debug file that belongs to its build id. What was read is
    kept, by build id and a hash of the code.
    """
    elf = module.elf
    if not elf.section(".debug_info") and debug_file(elf) is None:
        return {}
    name = f"debug-info-v{VERSION}-{elf.build_id or 'none'}-{elf.code_hash}.json"
    facts = _kept(load_json(name))
    if facts is None:
        facts = _read(module)
        store_json(name, facts)
    variables = {fact for fact, _names in VARIABLES}
    return {
        fact: value + module.bias if fact in variables else value for fact, value in facts.items()
    }


def _kept(data: Any) -> dict[str, int] | None:
    known = {fact for fact, *_rest in (*MEMBERS, *MORE_MEMBERS, *VARIABLES)}
    if not isinstance(data, dict) or not known.issuperset(data):
        return None
    return data if all(type(value) is int for value in data.values()) else None


def _read(module: Module) -> dict[str, int]:
    """Link-time facts. Debug info that is damaged tells as much as none."""
    elf = module.elf
    apart = None if elf.section(".debug_info") else debug_file(elf)
    found: dict[str, int] = {}
    try:
        with elf.lock, apart.open("rb") if apart else nullcontext(elf.data) as file:
            dwarf = ELFFile(cast(IO[bytes], file)).get_dwarf_info()
            for unit in _units(dwarf, module):
                found.update(_facts_of(unit))
    except Exception:
        # pyelftools raises whatever damage leads to.
        return {}
    return found


def _units(dwarf: DWARFInfo, module: Module) -> Iterator[CompileUnit]:
    """The units that hold the code of ``FUNCTIONS``, each once."""
    ranges = dwarf.get_aranges()
    if ranges is None:
        return
    seen = set()
    for function in FUNCTIONS:
        address = module.symbols.address(function)
        offset = None if address is None else ranges.cu_offset_at_addr(address)
        if offset is not None and offset not in seen:
            seen.add(offset)
            yield dwarf.get_CU_at(offset)


def _facts_of(unit: CompileUnit) -> dict[str, int]:
    found: dict[str, int] = {}
    for die in unit.get_top_DIE().iter_children():
        name = _name(die)
        if die.tag in STRUCTURES:
            for fact, structure, member, more in (*MEMBERS, *MORE_MEMBERS):
                if name == structure.removeprefix("struct "):
                    offset = _member(die, member)
                    if offset is not None:
                        found[fact] = offset + more
        elif die.tag == "DW_TAG_variable":
            for fact, names in VARIABLES:
                if name in names and (address := _address(die)) is not None:
                    found[fact] = address
    return found


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode("ascii", "replace") if attribute else ""


def _member(die: DIE, member: str) -> int | None:
    """A member's offset in a structure or in what a typedef calls so."""
    if die.tag == "DW_TAG_typedef":
        if "DW_AT_type" not in die.attributes:
            return None
        die = die.get_DIE_from_attribute("DW_AT_type")
        # Of a structure with a name of its own, that is met too.
        if die.tag != "DW_TAG_structure_type" or _name(die):
            return None
    for child in die.iter_children():
        if child.tag == "DW_TAG_member" and _name(child) == member:
            place = child.attributes.get("DW_AT_data_member_location")
            return place.value if place and type(place.value) is int else None
    return None


def _address(die: DIE) -> int | None:
    """A variable's link-time address: one DW_OP_addr."""
    place = die.attributes.get("DW_AT_location")
    raw = bytes(place.value) if place and isinstance(place.value, (list, bytes)) else b""
    return int.from_bytes(raw[1:], "little") if len(raw) == 9 and raw[0] == DW_OP_ADDR else None
