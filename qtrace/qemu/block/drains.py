"""For which requests a thread waits that drains, flushes, reads, or waits for a job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.aio.waits import chain, named_frames
from qtrace.qemu.block.block_model import BlockLook
from qtrace.qemu.block.coroutine_waits import wait_of
from qtrace.qemu.block.requests import InFlight

# Who waits in one of these waits for requests that are in flight: of all nodes, of one, its own, a
# job's. (The vCPUs' own writes, as of a flash chip, are requests, too.)
WAITS = re.compile(
    r"(bdrv|blk)_(drain|do_drain|flush|unref|pread|pwrite|co_|pwritev|preadv|ioctl|pdiscard|"
    r"truncate|block_status|is_allocated|make_empty|make_zero|remove_bs|close_all|zone|"
    r"(try_)?(change|set)_aio_context)\w*|"
    r"bdrv_(graph_wrlock|drained_begin|reopen\w*|poll_co)\w*|job_(finish_sync|cancel_sync)\w*"
)
EVERYTHING = re.compile(r"bdrv_(drain_all|close_all|reopen_multiple)\w*|blk_drain_all")
GRAPH = "bdrv_graph_wrlock"
OF_JOB = re.compile(r"job_(finish_sync|cancel_sync)\w*")
# A thread's stack is no larger than that (the main thread's, by default).
STACK = 8 << 20


@dataclass(frozen=True)
class Scope:
    """What a thread waits for.

    Attributes:
        what: it in words, as in "it waits for ...".
        nodes: requests that come through one of these, by address; None: through any.
        co: the request of this coroutine only, 0 for none.
        job: those of this job only, by its id, empty for none.
    """

    what: str = "what is in flight"
    nodes: frozenset[int] | None = None
    co: int = 0
    job: str = ""

    def has(self, one: InFlight) -> bool:
        """Whether it waits for that."""
        if self.co:
            return one.co is not None and one.co.address == self.co
        if self.job:
            return one.job == self.job
        return self.nodes is None or any(node.address in self.nodes for node in one.path)


def drainer(look: Look, thread: Thread) -> Thread | None:
    """The thread itself, or the one of those that it waits for, that waits for requests; None
    where none does."""
    threads = (thread, *chain(look, thread))
    return next((t for t in threads if t.blocked_in and any(map(_waits, named_frames(t)))), None)


def depth(functions: Sequence[str]) -> int:
    """The frame that waits for requests: the innermost one."""
    return next((n for n, function in enumerate(functions) if _waits(function)), 0)


def scope(blocks: BlockLook, thread: Thread, held: Iterable[int]) -> Scope:
    """What a thread waits for that waits for requests.

    Args:
        held: what its registers hold in the frames up to the one that waits.
    """
    functions, words = named_frames(thread), set(held)
    if GRAPH in functions:
        count = sum(blocks.graph.readers.values()) if blocks.graph else 0
        readers = f"{count} reader{'' if count == 1 else 's'} of the block graph"
        return Scope(f"{readers}, and what they have in flight") if count else Scope()
    if any(EVERYTHING.match(function) for function in functions):
        return Scope()
    low = thread.waits_at[0]
    # bdrv_poll_co(): the coroutine's argument is on the stack of who waits for it.
    own = [co for co in blocks.coroutines or () if low <= co.argument < low + STACK]
    if len(own) == 1:
        return Scope("its own request", co=own[0].address)
    if any(OF_JOB.match(function) for function in functions):
        jobs = [job for address, job in blocks.jobs.items() if address in words]
        jobs = jobs or list(blocks.jobs.values())
        if len(jobs) == 1:
            return Scope(f"job {jobs[0].id}", job=jobs[0].id)
    nodes = {node.address: node for node in blocks.nodes or () if node.address in words}
    for backend in blocks.backends or ():
        if backend.address in words and (node := blocks.node(backend.node)):
            nodes[node.address] = node
    if not nodes:
        return Scope()
    names = " and ".join(node.label for node in nodes.values())
    return Scope(f"what is in flight on node {names}", frozenset(nodes))


def unshown(blocks: BlockLook, of: Scope) -> list[str]:
    """What is in flight there by QEMU's own count and is no request that shows, in words."""
    counted = [
        f"node {node.label} has {node.in_flight} in flight, of which nothing shows"
        for node in blocks.nodes or ()
        if node.in_flight and (of.nodes is None or node.address in of.nodes)
    ]
    return [*counted, *_of_job(blocks, of)]


def _of_job(blocks: BlockLook, of: Scope) -> list[str]:
    found = []
    for job in blocks.jobs.values():
        co = blocks.coroutine(job.co) if of.job and job.id == of.job else None
        if co is not None:
            found.append(f"the coroutine of job {job.id}, which {wait_of(co).text}")
    return found


def _waits(function: str) -> bool:
    return bool(WAITS.match(function)) or function == GRAPH
