"""What is in flight, at which layer, and for what it waits: pure functions over a ``BlockLook``.

A coroutine has a request at each layer that it has come through: the one at fault is at the node
none of whose children has another of the same coroutine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qtrace.qemu.aio.model import Thread
from qtrace.qemu.block.block_model import Backend, BlockLook, Coroutine, Node, Request
from qtrace.qemu.block.coroutine_waits import (
    BEHIND,
    DEADLOCK,
    MUTEX,
    OTHER,
    QUEUED,
    THROTTLED,
    WORKER,
    CoroutineWait,
    untracked,
    wait_of,
)

# 9pfs, a TPM, a virtio-pmem hand theirs to the same threads as the block layer.
OTHER_WORK = "a device's work in the thread pool, no block request"
# Of a request it does not show which thread has it in hand: it may be this one's.
WHOSE_WORK = "work in the thread pool, a device's or a request's whose thread does not show"
NONE_FREE = CoroutineWait(QUEUED, "waits for a worker thread, of which none is free")


@dataclass(frozen=True)
class InFlight:
    """What one coroutine has in hand.

    Attributes:
        request: at the layer at fault; None of a flush, and of what is throttled before it gets
            to a node.
        what: ``read of 4096 bytes at 512``.
        node: the layer at fault, None where it does not show.
        path: the nodes that it came through, the one at fault first.
        backend: through which it came, None where that does not show.
        job: the id of the job whose it is, empty where it is none's.
        co: whose it is; None where its coroutine was not found.
        wait: what that sleeps in.
        thread: the worker thread that has it in hand for another than the block layer; of a block
            request None.
    """

    request: Request | None
    what: str
    node: Node | None
    path: tuple[Node, ...]
    backend: Backend | None
    co: Coroutine | None
    wait: CoroutineWait
    job: str = ""
    thread: Thread | None = None

    @property
    def where(self) -> str:
        """``read of 4096 bytes at 512 on node d (nbd) for vd``."""
        text = self.what
        if self.node is not None:
            text += f" on node {self.node.label}"
            if len(self.path) > 1:
                text += f" below {' < '.join(node.name or '?' for node in self.path[1:])}"
        elif self.path:
            text += f" of node {self.path[-1].label}"
        if self.backend is not None and self.backend.label:
            text += f", for {self.backend.label}"
        return text + (f", for job {self.job}" if self.job else "")

    @property
    def key(self) -> tuple[int, ...]:
        """The same in two looks for one and the same request in one and the same wait."""
        request, co = self.request, self.co
        if self.thread is not None:
            return (self.thread.tid, *self.thread.waits_at)
        own = (request.address, request.offset, request.bytes) if request else (0, 0, 0)
        return (*own, *((co.address, *co.sleeps_at) if co else (0, 0, 0)))


def in_flight(look: BlockLook) -> list[InFlight]:
    """One for each coroutine with requests, in the order of the nodes; then what the pool has in
    hand for others."""
    nodes = {node.address: node for node in look.nodes or ()}
    coroutines = {co.address: co for co in look.coroutines or ()}
    roots = {backend.node: backend for backend in look.backends or () if backend.node}
    by_co: dict[int, list[Request]] = {}
    for request in look.requests:
        by_co.setdefault(request.co, []).append(request)
    found = []
    for address, requests in by_co.items():
        path = _path(requests, nodes)
        co = coroutines.get(address)
        request = path[0]
        layers = tuple(nodes[one.node] for one in path if one.node in nodes)
        what = f"{request.kind} of {request.bytes} bytes at {request.offset}"
        backend = next((roots[r.node] for r in reversed(path) if r.node in roots), None)
        wait = wait_of(co) if co else CoroutineWait(OTHER, "waits, its coroutine was not found")
        node = nodes.get(request.node)
        found.append(InFlight(request, what, node, layers, backend, co, wait))
    for co in coroutines.values():
        if co.address not in by_co and (one := _untracked(co, nodes)):
            found.append(one)
    if look.busy_pool and look.busy_pool <= _threads_of(found, look):
        found = [
            replace(one, wait=NONE_FREE) if _has_no_thread(one, look) else one for one in found
        ]
    what = WHOSE_WORK if any(_has_no_thread(one, look) for one in found) else OTHER_WORK
    found += [_other_work(thread, what) for thread in look.other_work]
    return [_with_job(one, look) for one in found]


def count_in_flight(look: BlockLook) -> int | None:
    """How many requests all backends together have in flight, as QEMU itself counts; None where
    that cannot be read."""
    if look.backends is None:
        return None
    counts = [backend.in_flight for backend in look.backends]
    return None if None in counts else sum(count for count in counts if count)


def _with_job(one: InFlight, look: BlockLook) -> InFlight:
    """The same, with the job whose it is: its coroutine is the job's or has the job in hand, or it
    begins at a node that the job works on, and comes from nobody else that shows."""
    co, backend = one.co, one.backend
    exported = {export.backend for export in look.exports or ()}
    for address, job in look.jobs.items():
        if co is not None and (co.address == job.co or address in co.jobs):
            return replace(one, job=job.id)
    if one.request is None or (backend and (backend.label or backend.address in exported)):
        return one
    ids = [job.id for job in look.jobs.values() if one.path and one.path[-1].address in job.nodes]
    return replace(one, job=ids[0]) if len(ids) == 1 else one


def _path(requests: Sequence[Request], nodes: dict[int, Node]) -> list[Request]:
    """A coroutine's requests from the layer at fault up."""
    by_node = {request.node: request for request in requests}
    leaves = [
        request
        for request in requests
        if request.node not in nodes
        or not any(child in by_node for _edge, child in nodes[request.node].children)
    ]
    path = [leaves[0] if leaves else requests[0]]
    while True:
        above = next(
            (
                request
                for request in requests
                if request not in path
                and request.node in nodes
                and path[-1].node in [child for _edge, child in nodes[request.node].children]
            ),
            None,
        )
        if above is None:
            return path
        path.append(above)


def _untracked(co: Coroutine, nodes: dict[int, Node]) -> InFlight | None:
    """What a coroutine without a tracked request has in hand; None of one that serves no disk."""
    wait = wait_of(co)
    touched = tuple(nodes[address] for address in co.nodes if address in nodes)
    if wait.kind == THROTTLED:
        return InFlight(None, "request", None, touched[:1], None, co, wait)
    what = untracked(co)
    node = _lowest(touched)
    return InFlight(None, what, node, (node,) if node else (), None, co, wait) if what else None


def _has_no_thread(one: InFlight, look: BlockLook) -> bool:
    """Whether it does not show which thread of the pool has it in hand, or that any has."""
    return one.wait.kind == WORKER and one.co is not None and one.co.address not in look.workers


def _threads_of(found: Sequence[InFlight], look: BlockLook) -> set[int]:
    """The threads of the pool whose work is known."""
    of_requests = {look.workers.get(one.co.address, 0) for one in found if one.co is not None}
    return of_requests | {thread.tid for thread in look.other_work}


def _other_work(thread: Thread, what: str) -> InFlight:
    wait = CoroutineWait(WORKER, f"worker thread {thread.tid} is in {thread.blocked_in}")
    return InFlight(None, what, None, (), None, None, wait, thread=thread)


def _lowest(touched: Sequence[Node]) -> Node | None:
    """Of the nodes that a coroutine has in hand the one that has none of the others below it, the
    nearest to its leaf."""
    above = {node.address for node in touched}
    for node in touched:
        if not any(child in above for _edge, child in node.children):
            return node
    return touched[0] if touched else None


def first_causes(
    found: Sequence[InFlight], look: BlockLook
) -> tuple[list[InFlight], list[InFlight]]:
    """Those that wait for somebody else than another coroutine of QEMU's, and those that merely
    wait behind one.

    Who holds what others wait for is followed to its end: a coroutine that is no request's is a
    cause, too, and so are those that wait for one another. Where the end does not show and there
    is no other cause, those that wait are what can be told.
    """
    causes: list[InFlight] = []
    behind: list[InFlight] = []
    dead = {co.address for circle in circles(look) for co in circle}
    for one in found:
        if one.co is not None and one.co.address in dead:
            causes.append(replace(one, wait=_deadlock(one.co)))
        else:
            (behind if _is_behind(one) else causes).append(one)
    nodes = {node.address: node for node in look.nodes or ()}
    known = {one.co.address for one in causes if one.co}
    coroutines = {co.address: co for co in look.coroutines or ()}
    by_request = {request.address: request.co for request in look.requests}
    # A thousand wait for a handful.
    firsts = {holder for one in behind if one.co for holder in one.co.holders}
    firsts |= {by_request.get(one.request.waits_for, 0) for one in behind if one.request}
    ends = {co.address: co for co in _ends(firsts, coroutines) if co.address not in known}
    causes += [_of_coroutine(co, nodes) for co in ends.values()]
    own = {one.co.address for one in causes if one.co}
    behind = [one for one in behind if one.co is None or one.co.address not in own]
    return (causes, behind) if causes else (behind, [])


def _deadlock(co: Coroutine) -> CoroutineWait:
    text = f"{wait_of(co).text} of coroutine {co.holders[0]:#x}, which waits for it: a deadlock"
    return CoroutineWait(DEADLOCK, text)


def _is_behind(one: InFlight) -> bool:
    return one.wait.kind in BEHIND or (one.request is not None and bool(one.request.waits_for))


def _ends(firsts: Iterable[int], coroutines: Mapping[int, Coroutine]) -> list[Coroutine]:
    """The coroutines at the ends of the chains that lead on from some."""
    todo = [address for address in firsts if address in coroutines]
    seen: set[int] = set()
    ends = []
    while todo:
        co = coroutines[todo.pop()]
        if co.address in seen:
            continue
        seen.add(co.address)
        following = [address for address in co.holders if address in coroutines]
        todo += following
        if not following and wait_of(co).kind not in BEHIND:
            ends.append(co)
    return ends


def circles(look: BlockLook) -> list[list[Coroutine]]:
    """Coroutines that wait for one another, each for a CoMutex of the next one, for ever."""
    coroutines = {co.address: co for co in look.coroutines or ()}
    found: list[list[Coroutine]] = []
    told: set[int] = set()
    for co in coroutines.values():
        path = [co]
        while _is_locked_out(path[-1]) and path[-1].address not in told:
            following = coroutines.get(path[-1].holders[0])
            if following is None:
                break
            if following.address in (one.address for one in path):
                start = next(n for n, one in enumerate(path) if one.address == following.address)
                found.append(path[start:])
                told |= {one.address for one in path[start:]}
                break
            path.append(following)
    return found


def _is_locked_out(co: Coroutine) -> bool:
    return wait_of(co).kind == MUTEX and len(co.holders) == 1


def _of_coroutine(co: Coroutine, nodes: Mapping[int, Node]) -> InFlight:
    """What a coroutine has in hand that is no request, and that others wait for."""
    touched = tuple(nodes[address] for address in co.nodes[:1] if address in nodes)
    what = f"coroutine {co.address:#x} of {co.entry}"
    return InFlight(None, what, None, touched, None, co, wait_of(co))
