"""Where one QEMU keeps what: the facts, each known or missing on its own.

What needs a missing one is left out and named, the rest works.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

# The facts that are run-time addresses.
ADDRESSES = ("main_variable", "iohandler_variable", "jobs", "bql", "rcu_gp_ctr")


def begins_bottom_half(words: tuple[int, ...], callback: int, opaque: int) -> bool:
    """Whether words begin a QEMUBH with just these: {ctx, name, cb, opaque, ...}, or without the
    name where it has none (``Layout.bh_name``)."""
    return words[2:4] == (callback, opaque) or words[1:3] == (callback, opaque)


@dataclass(frozen=True)
class Layout:
    """What one binary's code tells; None where it does not.

    Addresses are run-time ones: ``main_variable``, ``iohandler_variable`` (where the pointers
    &qemu_aio_context and iohandler_ctx lie), ``jobs`` (the head of the list), ``bql`` (its
    pthread_mutex_t; 0 in a program without one), ``rcu_gp_ctr``. ``*_tls`` are (negative) offsets
    from the thread pointer. ``poll_register`` holds the ctx argument in every frame of aio_poll().
    All others are offsets into the structure that their name begins with: ``bh_*`` QEMUBH,
    ``ctx_*`` AioContext, ``handler_*`` AioHandler, ``co_*`` Coroutine, ``job_*`` Job, ``driver_*``
    JobDriver; ``iothread_ctx`` IOThread, where ``context_tls`` holds one of these, as before
    5f50be9b58 (6.1), and 0 where it holds the context itself.
    """

    main_variable: int | None = None
    iohandler_variable: int | None = None
    context_tls: int | None = None
    coroutine_tls: int | None = None
    jobs: int | None = None
    bql: int | None = None
    poll_register: str | None = None
    ctx_bh_list: int | None = None
    ctx_bh_slice_list: int | None = None
    ctx_aio_handlers: int | None = None
    ctx_scheduled_coroutines: int | None = None
    bh_flags: int | None = None
    bh_next: int | None = None
    bh_cb: int | None = None
    bh_opaque: int | None = None
    handler_next: int | None = None
    handler_deleted: int | None = None
    handler_io_read: int | None = None
    handler_io_write: int | None = None
    handler_opaque: int | None = None
    co_ctx: int | None = None
    co_caller: int | None = None
    co_scheduled_next: int | None = None
    co_env: int | None = None
    job_next: int | None = None
    job_driver: int | None = None
    job_co: int | None = None
    job_status: int | None = None
    driver_type: int | None = None
    ctx_poll_max_ns: int | None = None
    rcu_reader_tls: int | None = None
    rcu_gp_ctr: int | None = None
    iothread_ctx: int = 0

    @property
    def bh_name(self) -> int | None:
        """``name`` came with 0f08586c71 (6.1), between ctx and cb; opaque and next follow."""
        cb = self.bh_next - 16 if self.bh_cb is None and self.bh_next else self.bh_cb
        return 8 if cb == 16 else None

    def moved(self, by: int) -> Layout:
        """The same binary mapped so many bytes higher."""
        places = {name: getattr(self, name) for name in ADDRESSES}
        # 0: there is none.
        return replace(self, **{name: at + by for name, at in places.items() if at})

    def missing(self) -> list[str]:
        """The facts that were not found."""
        return [name for name in FACTS if getattr(self, name) is None]


FACTS = tuple(field.name for field in fields(Layout))
