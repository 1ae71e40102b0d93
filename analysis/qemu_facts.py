"""What is known of QEMU beforehand: of its contexts, its programs and single bottom halves."""

from __future__ import annotations

from typing import Any

from qtrace.knowledge import SNAPSHOT_JOBS

# Contexts that only the main loop should run; their bottom halves run with the BQL held.
MAIN_CONTEXTS = ("main", "iohandler")

# Programs that do one thing and end; qemu-nbd and qemu-storage-daemon have clients, these none.
ONE_TASK = frozenset({"qemu-img", "qemu-io"})

# A synchronous block request waits in aio_poll() for what completes it. Whatever thread polls has
# to run these, so that no lint takes offence at them.
COMPLETIONS = frozenset({
    "aio_wait_bh", "bdrv_co_drain_bh_cb", "blk_aio_complete_bh", "cb", "co_schedule_bh_cb",
    "dummy_bh_cb", "error_callback_bh", "ioq_submit_bh", "luring_unplug_fn", "notify_event_cb",
    "null_bh_cb", "qemu_laio_completion_bh", "qemu_luring_completion_bh", "spawn_thread_bh_fn",
    "thread_pool_completion_bh",
})  # fmt: skip
"""Of the block layer and the main loop itself (util/aio-wait.c, util/thread-pool.c,
block/linux-aio.c, block/io_uring.c, block/block-backend.c; ``cb`` is how 7.2 and 10.0 name
blk_aio_complete_bh() behind replay_bh_schedule_oneshot_event())."""

GRAPH = frozenset({"bdrv_schedule_unref_bh", "blk_exp_delete_bh"})
"""bdrv_graph_wrunlock() polls on purpose to run the first of these (10.0); they may not run on a
vCPU thread."""

WRAPPED = frozenset({
    "bdrv_activate_bh", "bdrv_open_bh", "bdrv_open_blockdev_ref_bh", "bdrv_open_child_bh",
    "bdrv_unref_bh", "bdrv_unref_child_bh", "blk_new_open_bh", "blk_new_with_bs_bh", "blk_unref_bh",
})  # fmt: skip
"""Made by scripts/block-coroutine-wrapper.py for ``no_co_wrapper`` functions: a coroutine calls one
outside of itself, and sleeps until it is done."""

MUST_BE_MAIN = frozenset({*SNAPSHOT_JOBS, "job_exit", "do_qmp_dispatch_bh"})
"""Known to break QEMU on any other thread: issue 2111; issue 780; effd60c878 (issue 1933)."""

JOINS = frozenset({"qemu_thread_join"})
"""Who waits in one of these for a thread that needs the BQL to end has given it away."""

AWAITED = {"job_exit": frozenset({"job_finish_sync", "job_finish_sync_locked"})}
"""Whose poll is there for the very end of a job."""


def is_one_task(header: dict[str, Any]) -> bool:
    """Whether a recording is of a program whose event loop nobody waits for: long callbacks and
    waits are its work."""
    return header["target"].get("program") in ONE_TASK
