"""The block layer of live QEMUs, beside what QMP tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtrace.inspection.blocks import BlockLooker
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.lab.guest import Guest
from qtrace.process.process import Process
from qtrace.qemu.block.block_model import ASLEEP, BlockLook
from qtrace.qemu.block.coroutine_waits import MONITOR, THROTTLED, wait_of
from qtrace.qemu.block.requests import in_flight
from tests.limits import TIMEOUT_S
from tests.live.support.hung import JOB, guest_with_sleeping_job
from tests.live.support.inspecting import inspect

pytestmark = pytest.mark.qemu

# Beyond what one write of the size may cost at once: the rest of them queue for hours.
THROTTLED_DISK = (
    "-drive", "if=none,id=slow,file=null-co://,format=raw,throttling.bps-total=1,"
              "throttling.bps-total-max=1",
)  # fmt: skip
WRITES = 6


def look_at(pid: int) -> BlockLook:
    looker = Looker(LiveQemu(Process(pid)))
    return BlockLooker(looker).look(looker.look())


def until(pid: int, shows: Callable[[BlockLook], object]) -> BlockLook:
    deadline = time.monotonic() + TIMEOUT_S
    while not shows(look := look_at(pid)):
        assert time.monotonic() < deadline, look
        time.sleep(0.02)
    return look


def test_nodes_requests_and_coroutines_are_those_that_qmp_tells_of(qemu_binary: Path) -> None:
    with guest_with_sleeping_job(qemu_binary, "tcg") as guest:
        file = guest.folder / "disk.img"
        file.write_bytes(bytes(1 << 20))
        guest.qmp.command(
            "blockdev-add",
            **{"driver": "file", "filename": str(file), "node-name": "own"},
        )
        look = until(guest.pid, lambda look: look.requests)
        status, document, _err = inspect("--pid", guest.pid)
        nodes = guest.qmp.command("query-named-block-nodes")
        statistics = guest.qmp.command("query-blockstats", **{"query-nodes": True})
        disks = guest.qmp.command("query-blockstats")
        (job,) = guest.qmp.command("query-jobs")
        state = guest.qmp.command("query-status")
    assert look.torn == ()
    assert look.missing == ()
    assert {(n["node-name"], n["drv"]) for n in nodes} == {
        (n.name, n.driver) for n in look.nodes or ()
    }
    names = {node.address: node.name for node in look.nodes or ()}
    # The statistics of a node have those of one of its children in them.
    below = {node.name: [names[c] for _edge, c in node.children] for node in look.nodes or ()}
    primary = {s["node-name"]: s["parent"]["node-name"] for s in statistics if "parent" in s}
    assert primary.keys() == {name for name, children in below.items() if children}
    assert all(child in below[name] for name, child in primary.items())
    assert {(d.get("device", ""), d.get("qdev", ""), d.get("node-name")) for d in disks} == {
        (b.name, b.device, names.get(b.node)) for b in look.backends or () if b.name or b.device
    }
    (own,) = [node for node in look.nodes or () if node.name == "own"]
    assert own.filename == str(file)
    assert (own.in_flight, own.quiesced, own.children) == (0, 0, ())
    (target,) = [node for node in look.nodes or () if node.name == "target"]
    assert [edge for edge, _child in target.children] == ["file"]
    # blkdebug never lets the target make its write.
    (write,) = [one for one in in_flight(look) if one.request is not None]
    assert write.request is not None
    assert (write.request.kind, write.request.offset, write.request.bytes) == ("write", 0, 65536)
    assert write.node is not None
    assert names[write.node.address] == "target"
    assert write.co is not None
    assert (write.co.state, write.co.whole) == (ASLEEP, True)
    assert look.run_state == state["status"]
    assert [job.user_paused for job in look.jobs.values()] == [False]
    assert job["status"] == "running"
    # The monitor's own, with nothing to do.
    assert MONITOR in [wait_of(co).kind for co in look.coroutines or ()]
    assert (status, document["verdict"]) == (0, "clear")
    (shown,) = document["block"]["requests"]
    # The target is its node, and its coroutine has the job in hand.
    assert shown["job"] == JOB
    assert (shown["kind"], shown["bytes"], shown["node"]) == ("write", 65536, "target")
    assert document["block"]["run_state"] == state["status"]


def test_what_a_throttle_group_holds_back_is_counted(qemu_binary: Path) -> None:
    with Guest(qemu_binary, "tcg", "idle", extra_args=THROTTLED_DISK) as guest:
        for number in range(WRITES):
            line = f'qemu-io slow "aio_write {number * 4}k 4k"'
            guest.qmp.command("human-monitor-command", **{"command-line": line})
        look = until(guest.pid, lambda look: len(throttled(look)) >= WRITES - 1)
        (backend,) = [b for b in guest.qmp.command("query-block") if b["device"] == "slow"]
    assert {one.co.group for one in throttled(look) if one.co} == {"slow"}
    (known,) = [b for b in look.backends or () if b.name == "slow"]
    assert known.in_flight == len(throttled(look))
    assert backend["inserted"]["group"] == "slow"


def throttled(look: BlockLook) -> list[Any]:
    return [one for one in in_flight(look) if one.wait.kind == THROTTLED]
