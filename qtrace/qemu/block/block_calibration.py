"""The block layer's layout, read from the running binary's own small exported functions.

Which register a compiler uses is followed, not assumed, and no version number is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qtrace.qemu.aio.flow import (
    Argument,
    Loaded,
    Root,
    Step,
    Value,
    compared,
    follow,
    result_of,
    steps_on,
)
from qtrace.qemu.aio.instructions import Disassembly
from qtrace.qemu.block.block_layout import BlockLayout

# The function's first argument.
ARGUMENT = Argument(0)
# Instructions from a function's start that belong to it, at most.
SHORT, LONG = 24, 60
# BdrvTrackedRequest (include/block/block_int-common.h, as since 2.12): what lies before `list`.
REQUEST_NEXT, REQUEST_CO = 0x30, 0x40


def calibrate(program: Disassembly) -> BlockLayout:
    """Read every fact that the program's code shows."""
    found: dict[str, int] = {}
    for part in _PARTS:
        found.update(part(program))
    has_graph_lock = program.address("bdrv_graph_wrlock") is not None
    return BlockLayout(has_graph_lock=has_graph_lock, **found)


def _members(steps: Iterable[Step], root: Root, mnemonics: tuple[str, ...] = ()) -> list[int]:
    """The offsets at which the code reaches into a structure, in its order."""
    found = []
    for step in steps:
        if mnemonics and step.instruction.mnemonic not in mnemonics:
            continue
        place = _reached(step)
        if place is not None and place.root == root:
            found.append(place.offset)
    return found


def _reached(step: Step) -> Value | None:
    """Where an instruction's operand in memory lies; or what it makes of a pointer and a register,
    as where offsets are too long for an instruction (aarch64)."""
    if step.instruction.mnemonic == "add" and step.instruction.register(1):
        return result_of(step)
    return step.address(0) or step.address(1)


def _variables(program: Disassembly, steps: Iterable[Step]) -> list[int]:
    """The static variables that the code loads or compares, in its order."""
    found = []
    for step in steps:
        for place in (step.address(0), step.address(1)):
            if place is None or place.root is not None or step.instruction.mnemonic == "lea":
                continue
            if program.is_variable(place.offset):
                found.append(place.offset)
    return found


def _named(name: str, offsets: list[int]) -> dict[str, int]:
    return {name: offsets[0]} if offsets else {}


def _first_member(program: Disassembly, fact: str, *symbols: str) -> dict[str, int]:
    """The first member of its argument that the first of these functions touches."""
    for symbol in symbols:
        offsets = _members(follow(program, symbol, SHORT), ARGUMENT)
        if offsets:
            return {fact: offsets[0]}
    return {}


def _list(program: Disassembly, symbol: str, head: str, follow_fact: str) -> dict[str, int]:
    """``next(element)``: the list's head where there is none, else what follows it."""
    steps = follow(program, symbol, SHORT)
    found = _named(follow_fact, _members(steps, ARGUMENT))
    return {**found, **_named(head, _variables(program, steps))}


def _nodes(program: Disassembly) -> dict[str, int]:
    found = _list(program, "bdrv_next_all_states", "nodes", "node_next")
    found |= _first_member(program, "node_name", "bdrv_get_node_name")
    found |= _first_member(program, "node_context", "bdrv_get_aio_context")
    found |= _first_member(program, "node_in_flight", "bdrv_inc_in_flight")
    # bs->quiesce_counter > 0 is asserted first.
    found |= _first_member(program, "node_quiesced", "bdrv_drain_all_end_quiesce")
    steps = follow(program, "bdrv_get_format_name", SHORT)
    found |= _named("node_driver", _members(steps, ARGUMENT))
    if "node_driver" in found:
        driver = Loaded(Value(ARGUMENT, found["node_driver"]))
        found |= _named("driver_name", _members(steps, driver))
        # BlockDriver *drv; void *opaque; AioContext *aio_context.
        if found.get("node_context") == found["node_driver"] + 16:
            found["node_opaque"] = found["node_driver"] + 8
    return found | _filename(program)


def _filename(program: Disassembly) -> dict[str, int]:
    """``char filename[PATH_MAX]; char backing_file[PATH_MAX]``: functions name the second."""
    for symbol in ("bdrv_get_backing_filename", "bdrv_get_full_backing_filename",
                   "bdrv_co_change_backing_file", "bdrv_change_backing_file"):  # fmt: skip
        for offset in _members(follow(program, symbol, LONG), ARGUMENT, ("lea", "add")):
            if 0x1000 < offset < 0x1100:
                return {"node_filename": offset - 0x1000}
    return {}


def _children(program: Disassembly) -> dict[str, int]:
    """bdrv_primary_child() walks the list of children."""
    steps = follow(program, "bdrv_primary_child", SHORT)
    found = _named("node_children", _members(steps, ARGUMENT))
    if found:
        child = Loaded(Value(ARGUMENT, found["node_children"]))
        found |= _named("child_next", _members(filter(steps_on, steps), child))
    return found


def _requests(program: Disassembly) -> dict[str, int]:
    """bdrv_co_get_self_request() looks for the coroutine among the node's requests."""
    steps = follow(program, "bdrv_co_get_self_request", LONG)
    for step in steps:
        place = compared(step)
        if place is None:
            continue
        head = place.root.address if isinstance(place.root, Loaded) else None
        if head is None or head.root != ARGUMENT:
            continue
        following = [n for n in _members(steps, Loaded(head), ("mov",)) if n != place.offset]
        # What lies before these two is known by the header alone: they must agree with it.
        if (following[:1], place.offset) == ([REQUEST_NEXT], REQUEST_CO):
            return {
                "node_requests": head.offset,
                "request_next": following[0],
                "request_co": place.offset,
            }
    return {}


def _backends(program: Disassembly) -> dict[str, int]:
    found = _list(program, "blk_all_next", "backends", "backend_next")
    for fact, symbol in (
        ("backend_name", "blk_name"),
        ("backend_root", "blk_bs"),
        ("backend_in_flight", "blk_inc_in_flight"),
        ("backend_device", "blk_get_attached_dev"),
        ("backend_iostatus", "blk_iostatus"),
        # Its first member is the ThrottleGroupMember (include/sysemu/block-backend.h).
        ("backend_member", "blk_get_public"),
    ):
        found |= _first_member(program, fact, symbol)
    return found


def _throttling(program: Disassembly) -> dict[str, int]:
    """throttle_group_get_name(member): container_of(member->throttle_state)->name."""
    steps = follow(program, "throttle_group_get_name", SHORT)
    found = _named("member_state", _members(steps, ARGUMENT))
    if found:
        state = Loaded(Value(ARGUMENT, found["member_state"]))
        found |= _named("group_name", _members(steps, state))
    return found


def _exports(program: Disassembly) -> dict[str, int]:
    """blk_exp_find(id) compares the id of one export after the other."""
    steps = follow(program, "blk_exp_find", LONG)
    heads = _variables(program, steps)
    if not heads:
        return {}
    export = Loaded(Value(None, heads[0]))
    following: list[int] = []
    ids: list[int] = []
    for step in steps:
        place = step.address(1)
        if place is None or place.root != export:
            continue
        (following if steps_on(step) else ids).append(place.offset)
    if not following or not ids:
        return {}
    # `BlockBackend *blk` stands before the list's entry (include/block/export.h).
    return {
        "exports": heads[0],
        "export_next": following[0],
        "export_id": ids[0],
        "export_backend": following[0] - 8,
    }


def _mutexes(program: Disassembly) -> dict[str, int]:
    """qemu_co_mutex_unlock() asserts that the holder is who unlocks."""
    for step in follow(program, "qemu_co_mutex_unlock", LONG):
        place = compared(step)
        # The number of those who lock comes first, and is compared with 0.
        if place is not None and place.root == ARGUMENT and place.offset:
            return {"mutex_holder": place.offset}
    return {}


def _jobs(program: Disassembly) -> dict[str, int]:
    found = _first_member(program, "job_user_paused", "job_user_paused_locked", "job_user_paused")
    found |= _first_member(program, "job_pause_count", "job_pause_locked", "job_pause")
    # for (el = job->nodes; el; el = el->next)
    found |= _first_member(program, "job_nodes", "block_job_has_bdrv")
    return found | _first_member(
        program, "job_cancelled", "job_is_cancelled_locked", "job_is_cancelled"
    )


def _graph_lock(program: Disassembly) -> dict[str, int]:
    """bdrv_graph_wrlock() asserts that there is no writer, unregister_aiocontext(ctx) takes the
    readers of a context off."""
    steps = follow(program, "bdrv_graph_wrlock", LONG)
    found = _named("graph_writer", _variables(program, steps))
    return found | _first_member(program, "context_graph", "unregister_aiocontext")


def _states(program: Disassembly) -> dict[str, int]:
    found: dict[str, int] = {}
    for fact, symbol, count in (
        ("run_state", "runstate_is_running", 4), ("migration", "migrate_get_current", SHORT),
    ):  # fmt: skip
        found |= _named(fact, _variables(program, follow(program, symbol, SHORT)[:count]))
    if "migration" in found:
        roots = (ARGUMENT, Loaded(Value(None, found["migration"])))
        for symbol in ("migration_is_running", "migration_is_active", "migration_is_idle"):
            steps = follow(program, symbol, SHORT)
            offsets = [offset for root in roots for offset in _members(steps, root) if offset]
            if offsets:
                found["migration_state"] = offsets[0]
                break
    for fact, symbol in (
        ("run_state_names", "RunState_lookup"),
        ("migration_names", "MigrationStatus_lookup"),
        ("iostatus_names", "BlockDeviceIoStatus_lookup"),
    ):
        address = program.address(symbol)
        if address is not None:
            found[fact] = address
    return found


_PARTS: tuple[Callable[[Disassembly], dict[str, int]], ...] = (
    _nodes, _children, _requests, _backends, _throttling, _exports, _mutexes, _jobs,
    _graph_lock, _states,
)  # fmt: skip
