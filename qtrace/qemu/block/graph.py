"""QEMU's block graph and what is in flight in it, read over a ``Memory`` while QEMU goes on.

Nothing is locked: each list is read until two readings agree, with every element's back pointer
where it must be. Requests come and go by the thousand; of each node those are shown that two
readings have in common.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from qtrace.machine.memory import Memory
from qtrace.qemu.aio.consistent_lists import ChangingMemory, Inconsistent, Torn
from qtrace.qemu.aio.model import Job
from qtrace.qemu.aio.walk import Missing
from qtrace.qemu.block.block_layout import BlockLayout
from qtrace.qemu.block.block_model import (
    REQUEST_KINDS,
    Backend,
    Export,
    GraphLock,
    JobFacts,
    Node,
    Request,
    ThrottleMember,
)

# Of one node. Beyond it a list is taken for a loop.
MAX_REQUESTS = 1 << 17
# Readings of a node's requests of which two must have some in common.
TRIES = 8
# BdrvChild {BlockDriverState *bs; char *name; ...}; the root of a BlockBackend is one, too.
CHILD_NODE, CHILD_NAME = 0, 8
# BdrvTrackedRequest {bs; int64 offset, bytes; type; bool serialising; ...; list; co; ...;
# waiting_for} (``calibration`` has checked where `list` and `co` lie).
REQUEST = struct.Struct("<QqqI")
REQUEST_WAITING_FOR, REQUEST_SIZE = 0x58, 0x60
# DeviceState: after the Object come `char *id; char *canonical_path` (include/hw/qdev-core.h).
DEVICE_PATH = 0x30
MACHINE = "/machine"
# Jobs that are a BlockJob, whose first member is its Job (include/block/blockjob.h).
BLOCK_JOBS = frozenset({"commit", "stream", "mirror", "backup"})
NODE_NAME_SIZE, PATH_SIZE = 32, 4096
# QEnumLookup {const char *const *array; features; int size} (include/qapi/util.h).
ENUM_LOOKUP = struct.Struct("<QQI")
# GSList {data; next} (glib).
LIST_DATA, LIST_NEXT = 0, 8
# More coroutines than would fit into memory do not read the graph.
MOST_READERS = 1 << 20
# More values than any of QAPI's enumerations that are read here has.
MAX_ENUM = 64

T = TypeVar("T")


class GraphReader:
    """Reads the block layer of one QEMU. Methods raise ``Missing`` and ``Torn``."""

    def __init__(self, memory: Memory, layout: BlockLayout) -> None:
        self._memory = ChangingMemory(memory)
        self.layout = layout
        self._enums: dict[int, tuple[str, ...]] = {}

    # Nodes

    def nodes(self) -> list[Node]:
        """All block nodes, the oldest first."""
        return self._memory.settled("block nodes", self._nodes)

    def _nodes(self) -> list[Node]:
        head, follow = self._fact("nodes"), self._fact("node_next")
        return [self._node(address) for address in self._memory.linked(head, follow)]

    def _node(self, address: int) -> Node:
        layout, memory = self.layout, self._memory
        name = self._text(address + self._fact("node_name"), NODE_NAME_SIZE)
        driver = memory.word(address + self._fact("node_driver"))
        format_name = layout.driver_name
        at = layout.node_filename
        return Node(
            address,
            name,
            self._pointed(driver + format_name) if driver and format_name is not None else "",
            None if at is None else self._text(address + at, PATH_SIZE),
            self._word(address, layout.node_context),
            self._count(address, layout.node_in_flight),
            self._count(address, layout.node_quiesced),
            tuple(self._children(address)),
            self._word(address, layout.node_opaque),
        )

    def _children(self, node: int) -> list[tuple[str, int]]:
        layout = self.layout
        if layout.node_children is None or layout.child_next is None:
            return []
        return [
            (self._pointed(child + CHILD_NAME), self._memory.word(child + CHILD_NODE))
            for child in self._memory.linked(node + layout.node_children, layout.child_next)
        ]

    # Requests

    def requests(self, node: int) -> tuple[list[Request], bool]:
        """A node's requests that two readings in a row show, and whether others come and go."""
        head, follow = node + self._fact("node_requests"), self._fact("request_next")
        before: list[Request] | None = None
        common: list[Request] = []
        for _ in range(TRIES):
            self._memory.forget()
            try:
                links = self._memory.linked(head, follow, MAX_REQUESTS)
                now = [self._request(address, node) for address in links]
            except Inconsistent:
                before = None
                continue
            if before is not None:
                known = set(before)
                common = [request for request in now if request in known]
                return common, len(common) < max(len(before), len(now))
            before = now
        raise Torn(f"requests of node {node:#x}")

    def _request(self, address: int, node: int) -> Request:
        raw = self._memory.bytes(address, REQUEST_SIZE)
        owner, offset, size, kind = REQUEST.unpack_from(raw)
        if owner != node or kind >= len(REQUEST_KINDS) or offset < 0 or size < 0:
            raise Inconsistent
        (co,) = struct.unpack_from("<Q", raw, self._fact("request_co"))
        (waits_for,) = struct.unpack_from("<Q", raw, REQUEST_WAITING_FOR)
        return Request(address, node, REQUEST_KINDS[kind], offset, size, co, waits_for)

    # Backends and exports

    def backends(self) -> list[Backend]:
        """All block backends, the oldest first."""
        return self._memory.settled("block backends", self._backends)

    def _backends(self) -> list[Backend]:
        head, follow = self._fact("backends"), self._fact("backend_next")
        return [self._backend(address) for address in self._memory.linked(head, follow)]

    def _backend(self, address: int) -> Backend:
        layout = self.layout
        root = self._word(address, layout.backend_root)
        device = self._word(address, layout.backend_device)
        status = self._count(address, layout.backend_iostatus)
        return Backend(
            address,
            self._pointed(address + layout.backend_name) if layout.backend_name is not None else "",
            self._memory.word(root + CHILD_NODE) if root else 0,
            self._device(device) if device else "",
            self._count(address, layout.backend_in_flight),
            "" if status is None else self._enum(layout.iostatus_names, status),
        )

    def _device(self, device: int) -> str:
        """The QOM path of a device; empty where none lies there."""
        path = self._pointed(device + DEVICE_PATH)
        return path if path.startswith(MACHINE) else ""

    def exports(self) -> list[Export]:
        """All exports."""
        return self._memory.settled("block exports", self._exports)

    def _exports(self) -> list[Export]:
        layout = self.layout
        head, follow = self._fact("exports"), self._fact("export_next")
        found = []
        for export in self._memory.linked(head, follow):
            backend = self._word(export, layout.export_backend)
            name = self._pointed(export + self._fact("export_id"))
            found.append(Export(export, name, backend or 0))
        return found

    def members(self, backends: Iterable[Backend], nodes: Iterable[Node]) -> list[ThrottleMember]:
        """The members of throttle groups: backends with limits, and the ``throttle`` nodes."""
        at = self._fact("backend_member")
        places = [backend.address + at for backend in backends]
        places += [node.opaque for node in nodes if node.driver == "throttle" and node.opaque]
        self._memory.forget()
        found = []
        for place in places:
            try:
                state = self._memory.word(place + self._fact("member_state"))
                if state:
                    group = self._pointed(state + self._fact("group_name"))
                    found.append(ThrottleMember(place, group))
            except Inconsistent:
                continue
        return found

    # States

    def job(self, job: Job) -> JobFacts:
        """How a job stands beside its status."""
        layout, address = self.layout, job.address

        def read() -> JobFacts:
            paused, cancelled = layout.job_user_paused, layout.job_cancelled
            return JobFacts(
                self._count(address, layout.job_pause_count),
                None if paused is None else bool(self._memory.bytes(address + paused, 1)[0]),
                None if cancelled is None else bool(self._memory.bytes(address + cancelled, 1)[0]),
                job.id,
                job.co or 0,
                tuple(self._job_nodes(address)) if job.kind in BLOCK_JOBS else (),
            )

        return self._memory.settled(f"job {address:#x}", read)

    def _job_nodes(self, job: int) -> list[int]:
        if self.layout.job_nodes is None:
            return []
        first = self._memory.word(job + self.layout.job_nodes)
        children = [
            self._memory.word(link + LIST_DATA) for link in self._memory.chain(first, LIST_NEXT)
        ]
        return [self._memory.word(child + CHILD_NODE) for child in children]

    def graph_lock(self, contexts: Iterable[int]) -> GraphLock | None:
        """Who has the lock of the graph; None in a QEMU without one."""
        if not self.layout.has_graph_lock:
            return None
        writer, at = self._fact("graph_writer"), self._fact("context_graph")

        def read() -> GraphLock:
            readers = {ctx: self._count(self._memory.word(ctx + at), 0) or 0 for ctx in contexts}
            if any(count > MOST_READERS for count in readers.values()):
                raise Inconsistent
            return GraphLock(
                {ctx: count for ctx, count in readers.items() if count},
                bool(self._count(writer, 0)),
            )

        return self._memory.settled("the graph lock", read)

    def run_state(self) -> str:
        """As QMP's query-status tells it; empty in a program without a guest."""
        if self.layout.run_state is None or self.layout.run_state_names is None:
            return ""
        return self._state("run state", self.layout.run_state, self.layout.run_state_names)

    def migration(self) -> str:
        """As QMP's query-migrate tells it; empty before there was one, and without a guest."""
        layout = self.layout
        if None in (layout.migration, layout.migration_state, layout.migration_names):
            return ""
        assert layout.migration is not None
        assert layout.migration_state is not None
        self._memory.forget()
        current = self._memory.peek(layout.migration)
        if not current:
            return ""
        return self._state("migration", current + layout.migration_state, layout.migration_names)

    def _state(self, what: str, address: int, names: int | None) -> str:
        def read() -> str:
            return self._enum(names, struct.unpack("<I", self._memory.bytes(address, 4))[0])

        return self._memory.settled(what, read)

    def _enum(self, lookup: int | None, value: int) -> str:
        """QAPI's name of a value."""
        if lookup is None:
            return ""
        names = self._enums.get(lookup)
        if names is None:
            array, _features, size = ENUM_LOOKUP.unpack(
                self._memory.bytes(lookup, ENUM_LOOKUP.size)
            )
            if size > MAX_ENUM:
                raise Inconsistent
            names = tuple(self._pointed(array + 8 * number) for number in range(size))
            self._enums[lookup] = names
        if value >= len(names):
            raise Inconsistent
        return names[value]

    # Words

    def one(self, read: Callable[[], T], torn: list[str], missing: set[str]) -> T | None:
        """What a method returns; None where it cannot, which is noted."""
        try:
            return read()
        except Torn as error:
            torn.append(error.what)
        except Missing as error:
            missing.add(error.fact)
        return None

    def _word(self, address: int, offset: int | None) -> int | None:
        return None if offset is None else self._memory.word(address + offset)

    def _count(self, address: int, offset: int | None) -> int | None:
        if offset is None:
            return None
        return int(struct.unpack("<I", self._memory.bytes(address + offset, 4))[0])

    def _pointed(self, place: int) -> str:
        """The string that a pointer leads to; empty without one."""
        pointer = self._memory.word(place)
        return self._memory.string(pointer) if pointer else ""

    def _text(self, address: int, size: int) -> str:
        """An array of characters: a user's or a guest's, of any bytes."""
        raw = self._memory.bytes(address, size)
        return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def _fact(self, name: str) -> int:
        value = getattr(self.layout, name)
        if value is None:
            raise Missing(name)
        return int(value)
