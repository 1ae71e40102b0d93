"""Where one QEMU keeps its block graph: the facts, each known or missing on its own."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

# Of the lock that came with 8.0 (block/graph-lock.c).
GRAPH_LOCK = ("graph_writer", "context_graph")


@dataclass(frozen=True)
class BlockLayout:
    """What one binary's code tells; None where it does not.

    ``ADDRESSES`` are run-time ones: heads of lists, variables, QEnumLookup structures. All others
    are offsets into the structure that their name begins with: ``node_*`` BlockDriverState,
    ``driver_*`` BlockDriver, ``child_*`` BdrvChild, ``request_*`` BdrvTrackedRequest, ``backend_*``
    BlockBackend, ``export_*`` BlockExport, ``member_*`` ThrottleGroupMember, ``mutex_*`` CoMutex,
    ``job_*`` Job (``job_nodes`` BlockJob), ``migration_*`` MigrationState, ``context_*``
    AioContext. ``group_name`` is one from the ThrottleState in a ThrottleGroup.

    ``has_graph_lock``: whether it is a QEMU that has one.
    """

    has_graph_lock: bool = False

    nodes: int | None = None
    node_next: int | None = None
    node_name: int | None = None
    node_driver: int | None = None
    node_opaque: int | None = None
    node_context: int | None = None
    node_filename: int | None = None
    node_in_flight: int | None = None
    node_quiesced: int | None = None
    node_children: int | None = None
    node_requests: int | None = None
    driver_name: int | None = None
    child_next: int | None = None
    request_next: int | None = None
    request_co: int | None = None
    backends: int | None = None
    backend_next: int | None = None
    backend_name: int | None = None
    backend_root: int | None = None
    backend_in_flight: int | None = None
    backend_device: int | None = None
    backend_iostatus: int | None = None
    backend_member: int | None = None
    member_state: int | None = None
    group_name: int | None = None
    exports: int | None = None
    export_next: int | None = None
    export_id: int | None = None
    export_backend: int | None = None
    mutex_holder: int | None = None
    job_pause_count: int | None = None
    job_user_paused: int | None = None
    job_cancelled: int | None = None
    job_nodes: int | None = None
    run_state: int | None = None
    run_state_names: int | None = None
    migration: int | None = None
    migration_state: int | None = None
    migration_names: int | None = None
    iostatus_names: int | None = None
    graph_writer: int | None = None
    context_graph: int | None = None

    def moved(self, by: int) -> BlockLayout:
        """The same of a program that is mapped so much higher."""
        known = {name: getattr(self, name) for name in ADDRESSES}
        return replace(self, **{n: at + by for n, at in known.items() if at is not None})

    def missing(self) -> list[str]:
        """The facts that were not found."""
        absent = () if self.has_graph_lock else GRAPH_LOCK
        return [name for name in FACTS if getattr(self, name) is None and name not in absent]


FACTS = tuple(field.name for field in fields(BlockLayout))
ADDRESSES = (
    "nodes", "backends", "exports", "run_state", "run_state_names", "migration",
    "migration_names", "iostatus_names", "graph_writer",
)  # fmt: skip
