"""What a look at the block layer finds: plain data, the same for a live process, a core and gdb."""

from __future__ import annotations

from dataclasses import dataclass, field

from qtrace.qemu.aio.model import Thread

# BdrvTrackedRequestType (include/block/block_int-common.h).
REQUEST_KINDS = ("read", "write", "discard", "truncate")

# What a coroutine does: in the pool, waiting to be used again; left by yielding; on a thread now;
# or it has entered another one, which is.
FREE, ASLEEP, RUNS, ENTERED = "free", "asleep", "runs", "entered"


@dataclass(frozen=True)
class Node:
    """A BlockDriverState. ``children`` are the addresses of the nodes below it, each with the
    name of its edge (``file``, ``backing``); ``quiesced`` counts who drains it.

    ``driver`` is empty of a node without a medium; ``filename`` as QEMU keeps it, often empty.
    None: not to be told.
    """

    address: int
    name: str
    driver: str
    filename: str | None
    context: int | None
    in_flight: int | None
    quiesced: int | None
    children: tuple[tuple[str, int], ...] = ()
    opaque: int | None = None

    @property
    def label(self) -> str:
        return f"{self.name or '?'} ({self.driver or 'no medium'})"


@dataclass(frozen=True)
class Backend:
    """A BlockBackend: ``name`` as of -drive, ``device`` the QOM path of the device on it, ``node``
    the address of its root node, 0 without a medium; ``iostatus`` as in QMP."""

    address: int
    name: str
    node: int
    device: str
    in_flight: int | None
    iostatus: str

    @property
    def label(self) -> str:
        """What people call it: the device's id or path, else its own name."""
        return device_id(self.device) or self.name


def device_id(path: str) -> str:
    """``vd`` of ``/machine/peripheral/vd/virtio-backend``; without an id the path itself."""
    parts = path.split("/")
    if parts[:3] == ["", "machine", "peripheral"] and len(parts) > 3:
        return parts[3]
    return path


@dataclass(frozen=True)
class Request:
    """A BdrvTrackedRequest: what one layer of the graph has in hand for a coroutine.

    ``waits_for`` is the address of the request that it overlaps with and waits for, 0 for none.
    """

    address: int
    node: int
    kind: str
    offset: int
    bytes: int
    co: int
    waits_for: int = 0


@dataclass(frozen=True)
class Export:
    """A BlockExport; ``backend`` is an address."""

    address: int
    id: str
    backend: int


@dataclass(frozen=True)
class ThrottleMember:
    """Who may have requests in a throttle group's queue: a backend, or a throttle node."""

    address: int
    group: str


@dataclass(frozen=True)
class JobFacts:
    """Of a job: how often it is paused, whether by the user, whether it is cancelled; its id, its
    coroutine's address (0 without one), and those of the nodes that it works on."""

    pause_count: int | None
    user_paused: bool | None
    cancelled: bool | None
    id: str = ""
    co: int = 0
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class GraphLock:
    """The lock of the block graph: by AioContext how many read it, where any do, and whether
    somebody writes it. (Who waits to write lets readers go on: there is no writer then.)"""

    readers: dict[int, int]
    is_written: bool


@dataclass(frozen=True)
class Coroutine:
    """A coroutine that is not free.

    Attributes:
        address, entry: the Coroutine, and the name of its first function.
        state: ``asleep``, ``runs`` or ``entered``.
        tid: the thread that is in it, 0 where it sleeps or the thread does not show.
        frames: function names with offsets, leaf first, without the trampoline; empty while it
            runs.
        whole: the chain reaches the coroutine's first function.
        sleeps_at: stack pointer and pc, what tells two waits apart.
        stack: where its stack lies, lowest and highest address.
        fds: descriptors whose handlers' argument lies on its stack: what it waits for.
        queue: the CoQueue in which it waits, 0 where it waits in none, or that does not show.
        holders: the coroutines that have what it waits for: the one that holds the CoMutex, or
            those that have what the CoQueue is a part of in hand.
        group: the throttle group in whose queue it is.
        nodes: block nodes whose addresses lie on its stack, from the leaf on.
        jobs: jobs, likewise.
        argument: that of its first function.
    """

    address: int
    entry: str
    state: str
    tid: int = 0
    frames: tuple[str, ...] = ()
    whole: bool = False
    sleeps_at: tuple[int, int] = (0, 0)
    stack: tuple[int, int] = (0, 0)
    fds: tuple[int, ...] = ()
    queue: int = 0
    holders: tuple[int, ...] = ()
    group: str = ""
    nodes: tuple[int, ...] = ()
    jobs: tuple[int, ...] = ()
    argument: int = 0

    @property
    def functions(self) -> list[str]:
        """The frames without offsets."""
        return [frame.split("+0x")[0] for frame in self.frames]


@dataclass(frozen=True)
class BlockLook:
    """All of the block layer at one look.

    Attributes:
        nodes, backends, exports: None where they cannot be read.
        requests: those that were there throughout the look.
        passing: the nodes whose requests came and went meanwhile: there are more.
        coroutines: those that are not free; None where they cannot be found.
        free: how many coroutines wait to be used again.
        workers: by coroutine, the thread that has its work in hand and sleeps.
        other_work: the pool's threads that sleep with work in hand which is no block request's, as
            far as it shows.
        busy_pool: the pool's threads, where all of them sleep with work in hand; else empty.
        run_state, migration: as in QMP; empty where they do not show.
        jobs: facts by the job's address.
        graph: None in a QEMU without such a lock, or where it cannot be read.
        torn: what changed too fast to be read, in words.
        missing: the facts that the binary's code does not show.
    """

    time_ns: int
    nodes: tuple[Node, ...] | None = ()
    backends: tuple[Backend, ...] | None = ()
    exports: tuple[Export, ...] | None = ()
    members: tuple[ThrottleMember, ...] = ()
    requests: tuple[Request, ...] = ()
    passing: tuple[int, ...] = ()
    coroutines: tuple[Coroutine, ...] | None = ()
    free: int = 0
    workers: dict[int, int] = field(default_factory=dict)
    other_work: tuple[Thread, ...] = ()
    busy_pool: frozenset[int] = frozenset()
    run_state: str = ""
    migration: str = ""
    jobs: dict[int, JobFacts] = field(default_factory=dict)
    graph: GraphLock | None = None
    torn: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def node(self, address: int) -> Node | None:
        return next((node for node in self.nodes or () if node.address == address), None)

    def coroutine(self, address: int) -> Coroutine | None:
        return next((co for co in self.coroutines or () if co.address == address), None)
