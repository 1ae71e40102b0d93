"""What is in flight, at which layer, and for what it waits: pure functions over a ``BlockLook``.

A coroutine has a request at each layer that it has come through: the one at fault is at the node
none of whose children has another of the same coroutine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtrace.qemu.block.block_model import Backend, BlockLook, Coroutine, Node, Request
from qtrace.qemu.block.coroutine_waits import (
    BEHIND,
    OTHER,
    THROTTLED,
    CoroutineWait,
    is_flush,
    wait_of,
)


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
        co: whose it is; None where its coroutine was not found.
        wait: what that sleeps in.
    """

    request: Request | None
    what: str
    node: Node | None
    path: tuple[Node, ...]
    backend: Backend | None
    co: Coroutine | None
    wait: CoroutineWait

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
        return text

    @property
    def key(self) -> tuple[int, ...]:
        """The same in two looks for one and the same request in one and the same wait."""
        request, co = self.request, self.co
        own = (request.address, request.offset, request.bytes) if request else (0, 0, 0)
        return (*own, *((co.address, *co.sleeps_at) if co else (0, 0, 0)))


def in_flight(look: BlockLook) -> list[InFlight]:
    """One for each coroutine with requests, in the order of the nodes."""
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
    return found


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
    if is_flush(co):
        node = touched[0] if touched else None
        return InFlight(None, "flush", node, touched[:1], None, co, wait)
    return None


def first_causes(found: Iterable[InFlight]) -> tuple[list[InFlight], list[InFlight]]:
    """Those that wait for somebody else than another coroutine of QEMU's, and those that merely
    wait behind one."""
    causes: list[InFlight] = []
    behind: list[InFlight] = []
    for one in found:
        waits = one.wait.kind in BEHIND or (one.request is not None and one.request.waits_for)
        (behind if waits else causes).append(one)
    return causes, behind
