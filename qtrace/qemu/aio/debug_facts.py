"""Which facts of the layout debug info tells, and how; gdb and pyelftools both read it.

A build without optimisation keeps everything in memory, so that little can be read from its
code; but it is what developers run, and with debug info.

Who is right where code and debug info differ: for whoever only reads (looks, experiments, gdb's
commands) debug info is believed, since calibration reads compiled code and the compiler knows; the
facts are told. A recording of every bottom half, which puts offsets into BPF programs, takes the
difference for debug info of another build and is refused (``qtrace.sites.cross_check``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from qtrace.qemu.aio.layout import Layout

# Fact, type, member, and what is added: a list's entry begins with the pointer to the next one,
# and a handler is in the list of deleted ones when its le_prev is set.
MEMBERS = (
    ("bh_flags", "struct QEMUBH", "flags", 0),
    ("bh_next", "struct QEMUBH", "next", 0),
    ("bh_cb", "struct QEMUBH", "cb", 0),
    ("bh_opaque", "struct QEMUBH", "opaque", 0),
    ("ctx_bh_list", "struct AioContext", "bh_list", 0),
    ("ctx_bh_slice_list", "struct AioContext", "bh_slice_list", 0),
    ("ctx_aio_handlers", "struct AioContext", "aio_handlers", 0),
    ("ctx_scheduled_coroutines", "struct AioContext", "scheduled_coroutines", 0),
    ("ctx_poll_max_ns", "struct AioContext", "poll_max_ns", 0),
    ("handler_next", "struct AioHandler", "node", 0),
    ("handler_deleted", "struct AioHandler", "node_deleted", 8),
    ("handler_io_read", "struct AioHandler", "io_read", 0),
    ("handler_io_write", "struct AioHandler", "io_write", 0),
    ("handler_opaque", "struct AioHandler", "opaque", 0),
    ("co_ctx", "struct Coroutine", "ctx", 0),
    ("co_caller", "struct Coroutine", "caller", 0),
    ("co_scheduled_next", "struct Coroutine", "co_scheduled_next", 0),
    ("co_env", "CoroutineUContext", "env", 0),
    ("job_next", "struct Job", "job_list", 0),
    ("job_driver", "struct Job", "driver", 0),
    ("job_co", "struct Job", "co", 0),
    ("job_status", "struct Job", "status", 0),
    ("driver_type", "struct JobDriver", "job_type", 0),
)
# Fact, and the variable's names, the newest first.
VARIABLES = (
    ("main_variable", ("qemu_aio_context",)),
    ("iohandler_variable", ("iohandler_ctx",)),
)


def believed(layout: Layout, told: Mapping[str, int]) -> tuple[Layout, list[str]]:
    """The layout with what debug info tells, and the facts on which the code says otherwise."""
    known = {field.name: getattr(layout, field.name) for field in fields(layout)}
    told = {name: value for name, value in told.items() if name in known}
    differing = [name for name, value in told.items() if known[name] not in (None, value)]
    return replace(layout, **told), differing  # type: ignore[arg-type]
