"""The block layer of a look, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from qtrace.cli.views.look_view import NOTE, Shown, loop_finding_json, say
from qtrace.cli.views.verdict_view import inert
from qtrace.inspection.answer import Answer
from qtrace.inspection.request_proof import RequestFinding
from qtrace.qemu.aio.findings import Finding
from qtrace.qemu.block.block_model import ASLEEP, Backend, BlockLook, Coroutine, Node
from qtrace.qemu.block.coroutine_waits import BEHIND, MONITOR, wait_of
from qtrace.qemu.block.requests import InFlight, in_flight

Document = dict[str, Any]


def blocks_json(look: BlockLook) -> Document:
    """All of it; addresses in hex. What cannot be read is null, never empty."""
    names = {node.address: node.name for node in look.nodes or ()}
    return {
        "run_state": look.run_state or None,
        "migration": look.migration or None,
        "nodes": None if look.nodes is None else [_node(node, names, look) for node in look.nodes],
        "backends": None
        if look.backends is None
        else [
            {
                "name": inert(backend.name) or None,
                "device": inert(backend.device) or None,
                "node": inert(names.get(backend.node, "")) or None,
                "in_flight": backend.in_flight,
                "io_status": backend.iostatus or None,
            }
            for backend in look.backends
        ],
        "exports": None
        if look.exports is None
        else [{"id": inert(export.id), "node": _exported(look, export.backend)}
              for export in look.exports],
        "requests": [request_json(one) for one in in_flight(look)],
        "coroutines": None
        if look.coroutines is None
        else {
            "free": look.free,
            "others": [_coroutine(co) for co in look.coroutines],
        },
    }  # fmt: skip


def request_json(one: InFlight) -> Document:
    """What is in flight, and what it waits for."""
    request, co = one.request, one.co
    return {
        "kind": request.kind if request else one.what,
        "offset": request.offset if request else None,
        "bytes": request.bytes if request else None,
        "node": inert(one.node.name) if one.node else None,
        "path": [inert(node.name) for node in one.path],
        "device": inert(one.backend.label) or None if one.backend else None,
        "co": f"{co.address:#x}" if co else None,
        "job": inert(one.job) or None,
        "wait": one.wait.kind,
        "waits": inert(one.wait.text),
        "group": inert(co.group) or None if co else None,
    }


def answer_findings_json(answer: Answer) -> list[Document]:
    """Each finding of an answer, of threads and of requests."""
    return [finding_json(finding) for finding in answer.findings]


def finding_json(finding: Finding | RequestFinding) -> Document:
    """One of threads, or of requests."""
    if isinstance(finding, RequestFinding):
        return request_finding_json(finding)
    return loop_finding_json(finding)


def request_finding_json(finding: RequestFinding) -> Document:
    """A finding about requests, with the keys of those about threads, too."""
    return {
        "verdict": finding.kind,
        "sentence": inert(finding.sentence),
        "requests": [request_json(one) for one in finding.requests],
        "count": finding.count,
        "processes": [
            {"pid": peer.pid, "name": inert(peer.name), "state": peer.state or None,
             "held": inert(peer.held) or None}
            for peer in finding.whom.peers
        ],
        "queued_bytes": finding.whom.queued or None,
        "context": None,
        "bottom_halves": [],
        "tid": finding.whom.tid or None,
        "role": None,
        "polls": None,
        "waits_in": [],
        "command": None,
        "looks": finding.looks,
        "at_least_ns": finding.at_least_ns or None,
        "proof": inert(finding.proof) or None,
    }  # fmt: skip


def _node(node: Node, names: dict[int, str], look: BlockLook) -> Document:
    return {
        "name": inert(node.name),
        "driver": node.driver or None,
        "file": None if node.filename is None else inert(node.filename),
        "ctx": None if node.context is None else f"{node.context:#x}",
        "in_flight": node.in_flight,
        "quiesced": node.quiesced,
        "children": {inert(edge): inert(names.get(child, "?")) for edge, child in node.children},
        "requests": sum(request.node == node.address for request in look.requests),
        "requests_pass": node.address in look.passing,
    }


def _exported(look: BlockLook, address: int) -> str | None:
    backend = next((one for one in look.backends or () if one.address == address), None)
    node = look.node(backend.node) if backend else None
    return inert(node.name) if node else None


def _coroutine(co: Coroutine) -> Document:
    wait = wait_of(co)
    return {
        "co": f"{co.address:#x}",
        "entry": inert(co.entry),
        "state": co.state,
        "tid": co.tid or None,
        "wait": wait.kind if co.state == ASLEEP else None,
        "waits": inert(wait.text) if co.state == ASLEEP else None,
        "fds": list(co.fds),
        "queue": f"{co.queue:#x}" if co.queue else None,
        "held_by": [f"{holder:#x}" for holder in co.holders],
        "complete": co.whole,
        "stack": [inert(frame) for frame in co.frames],
    }


def print_blocks(console: Console, look: BlockLook, shown: Shown) -> None:
    """Nodes, backends, and the coroutines that do something; alike ones once.

    Args:
        shown: a frame as people are shown it, with its likely name.
    """
    if look.nodes is None:
        say(console, "block nodes: ? (they cannot be read)", style=NOTE)
    elif look.nodes:
        say(console, "block nodes", style="bold")
        for node in look.nodes:
            _print_node(console, look, node)
    for backend in look.backends or ():
        if backend.name or backend.device:
            say(console, f"  {_backend(look, backend)}")
    _print_coroutines(console, look, shown)
    for what in look.torn:
        say(console, f"not shown, it changes too fast or is not there: {what}", style=NOTE)
    if look.missing:
        facts = ", ".join(look.missing)
        say(console, f"not found in this binary's code: {facts}", style=NOTE)


def _print_node(console: Console, look: BlockLook, node: Node) -> None:
    names = {one.address: one.name for one in look.nodes or ()}
    parts = [node.label, node.filename or ""]
    children = [f"{edge} {names.get(child) or '?'}" for edge, child in node.children]
    parts.append(f"on {', '.join(children)}" if children else "")
    count = sum(request.node == node.address for request in look.requests)
    more = " and others that come and go" if node.address in look.passing else ""
    parts.append(f"{_count(count, 'request')}{more}" if count or more else "")
    parts.append("drained" if node.quiesced else "")
    say(console, "  " + ", ".join(part for part in parts if part))


def _backend(look: BlockLook, backend: Backend) -> str:
    node = look.node(backend.node)
    text = f"{backend.label or '?'} on {node.name or '?' if node else 'no medium'}"
    if backend.in_flight:
        text += f", {backend.in_flight} in flight"
    if backend.iostatus not in ("", "ok"):
        text += f", I/O status {backend.iostatus}"
    return text


def _print_coroutines(console: Console, look: BlockLook, shown: Shown) -> None:
    if look.coroutines is None:
        say(console, "coroutines: ? (they cannot be found)", style=NOTE)
        return
    asleep = sum(co.state == ASLEEP for co in look.coroutines)
    busy = len(look.coroutines) - asleep
    counts = f"{look.free} free, {asleep} asleep" + (f", {busy} entered" if busy else "")
    say(console, f"coroutines: {counts}", style="bold")
    for group in _alike(look.coroutines):
        first, several = group[0], len(group)
        what = f"{first.address:#x}" if several == 1 else f"{several} times"
        doing = wait_of(first)
        if doing.kind == MONITOR:
            say(console, f"  {what} {doing.text}")
            continue
        fds = f" (fd {', '.join(map(str, first.fds))})" if first.fds else ""
        held = {holder for co in group for holder in co.holders} if doing.kind in BEHIND else set()
        of = _behind(sorted(held))
        group_name = f" by group {first.group}" if first.group and first.group in doing.text else ""
        say(console, f"  {what} {shown(first.entry)}: {doing.text}{fds}{of}{group_name}")
        for frame in first.frames:
            say(console, f"      {shown(frame)}")
        if first.frames and not first.whole:
            say(console, "      ? (the chain breaks off here)")


def _behind(holders: Sequence[int]) -> str:
    """Which coroutines have what others wait for."""
    if not holders:
        return ""
    more = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    return f", behind coroutine {holders[0]:#x}{more}"


def _alike(coroutines: Sequence[Coroutine]) -> list[list[Coroutine]]:
    groups: dict[tuple[object, ...], list[Coroutine]] = {}
    for co in coroutines:
        key = (co.entry, co.state, co.tid, co.frames, co.fds, co.group)
        groups.setdefault(key, []).append(co)
    return list(groups.values())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
