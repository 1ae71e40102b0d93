"""Facts of the layout that debug info tells, which a build without optimisation hides elsewhere.

The code of such a build keeps everything in memory, so that little can be read from it; but it
is what developers run, and with debug info.
"""

from __future__ import annotations

from dataclasses import fields, replace

import gdb

from qtrace.gdbscripts.target import register
from qtrace.target.aio.layout import Layout

# Fact, type, member. A list's entry begins with the pointer to the next one.
MEMBERS = (
    ("bh_flags", "struct QEMUBH", "flags"),
    ("bh_next", "struct QEMUBH", "next"),
    ("bh_cb", "struct QEMUBH", "cb"),
    ("bh_opaque", "struct QEMUBH", "opaque"),
    ("ctx_bh_list", "struct AioContext", "bh_list"),
    ("ctx_bh_slice_list", "struct AioContext", "bh_slice_list"),
    ("ctx_aio_handlers", "struct AioContext", "aio_handlers"),
    ("ctx_scheduled_coroutines", "struct AioContext", "scheduled_coroutines"),
    ("handler_next", "struct AioHandler", "node"),
    ("handler_io_read", "struct AioHandler", "io_read"),
    ("handler_io_write", "struct AioHandler", "io_write"),
    ("handler_opaque", "struct AioHandler", "opaque"),
    ("co_ctx", "struct Coroutine", "ctx"),
    ("co_caller", "struct Coroutine", "caller"),
    ("co_scheduled_next", "struct Coroutine", "co_scheduled_next"),
    ("co_env", "CoroutineUContext", "env"),
    ("job_next", "struct Job", "job_list"),
    ("job_driver", "struct Job", "driver"),
    ("job_co", "struct Job", "co"),
    ("job_status", "struct Job", "status"),
    ("driver_type", "struct JobDriver", "job_type"),
)
# A handler is deleted when it is in the list of deleted ones: le_prev is set.
DELETED = ("handler_deleted", "struct AioHandler", "node_deleted", 8)
# Fact, and the variable's names, the newest first.
VARIABLES = (
    ("main_variable", ("qemu_aio_context",)),
    ("iohandler_variable", ("iohandler_ctx",)),
    ("jobs", ("'job.c'::jobs",)),
    ("bql", ("'cpus.c'::bql", "qemu_global_mutex")),
    ("waiters", ("global_aio_wait",)),
)
THREAD_LOCAL = (("context_tls", "co_tls_my_aiocontext"), ("coroutine_tls", "co_tls_current"))


def with_debug_info(layout: Layout) -> tuple[Layout, list[str]]:
    """The layout with what debug info tells, and the facts on which the code says otherwise."""
    told = facts()
    known = {field.name: getattr(layout, field.name) for field in fields(layout)}
    differing = [name for name, value in told.items() if known[name] not in (None, value)]
    return replace(layout, **told), differing  # type: ignore[arg-type]


def facts() -> dict[str, int]:
    """Addresses and offsets by the names of ``Layout``; empty without debug info."""
    found: dict[str, int | None] = {}
    name, structure, member, more = DELETED
    for fact, holder, part in (*MEMBERS, (name, structure, member)):
        found[fact] = _offset(holder, part)
    if (deleted := found[name]) is not None:
        found[name] = deleted + more
    if not any(found.values()):
        return {}
    for fact, names in VARIABLES:
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
