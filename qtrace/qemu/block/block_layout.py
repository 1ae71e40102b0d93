"""Where one QEMU keeps its block graph: the facts, each known or missing on its own."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class BlockLayout:
    """What one binary's code tells; None where it does not.

    ``nodes``, ``backends``, ``exports`` (heads of lists), ``run_state``, ``migration`` (variables)
    and ``*_names`` (QEnumLookup structures) are run-time addresses. All others are offsets into the
    structure that their name begins with: ``node_*`` BlockDriverState, ``driver_*`` BlockDriver,
    ``child_*`` BdrvChild, ``request_*`` BdrvTrackedRequest, ``backend_*`` BlockBackend,
    ``export_*`` BlockExport, ``member_*`` ThrottleGroupMember, ``mutex_*`` CoMutex, ``job_*`` Job,
    ``migration_*`` MigrationState. ``group_name`` is one from the ThrottleState in a ThrottleGroup.
    """

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
    run_state: int | None = None
    run_state_names: int | None = None
    migration: int | None = None
    migration_state: int | None = None
    migration_names: int | None = None
    iostatus_names: int | None = None

    def missing(self) -> list[str]:
        """The facts that were not found."""
        return [f.name for f in fields(self) if getattr(self, f.name) is None]
