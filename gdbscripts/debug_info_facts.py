"""Facts of the layout that debug info tells, which a build without optimisation hides elsewhere."""

from __future__ import annotations

import gdb

from qtrace.gdbscripts.gdb_target import register
from qtrace.qemu.aio.debug_facts import MEMBERS, VARIABLES, believed
from qtrace.qemu.aio.layout import Layout

# As ``VARIABLES``; where others may be called so, with its file, as only gdb understands it.
OTHERS = (
    ("jobs", ("'job.c'::jobs",)),
    ("bql", ("'cpus.c'::bql", "qemu_global_mutex")),
)
THREAD_LOCAL = (("context_tls", "co_tls_my_aiocontext"), ("coroutine_tls", "co_tls_current"))


def with_debug_info(layout: Layout) -> tuple[Layout, list[str]]:
    """The layout with what debug info tells, and the facts on which the code says otherwise."""
    return believed(layout, facts())


def facts() -> dict[str, int]:
    """Addresses and offsets by the names of ``Layout``; empty without debug info."""
    found: dict[str, int | None] = {}
    for fact, structure, member, more in MEMBERS:
        offset = _offset(structure, member)
        found[fact] = None if offset is None else offset + more
    if not any(found.values()):
        return {}
    for fact, names in (*VARIABLES, *OTHERS):
        found[fact] = next((a for one in names if (a := _address(one)) is not None), None)
    pointer = register(gdb.newest_frame(), "fs_base")
    for fact, variable in THREAD_LOCAL:
        address = _address(variable)
        found[fact] = address - pointer if address and pointer else None
    return {fact: value for fact, value in found.items() if value is not None}


def _offset(structure: str, member: str) -> int | None:
    try:
        members = gdb.lookup_type(structure).strip_typedefs().fields()
    except (gdb.error, TypeError):
        return None
    return next((field.bitpos // 8 for field in members if field.name == member), None)


def _address(variable: str) -> int | None:
    try:
        return int(gdb.parse_and_eval(f"(unsigned long)&{variable}"))
    except gdb.error:
        return None
