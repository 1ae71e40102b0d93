"""Which requests are at fault, whose they are, and for which of them a thread waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.block.block_model import (
    ASLEEP,
    Backend,
    BlockLook,
    Coroutine,
    GraphLock,
    JobFacts,
    Node,
    Request,
)
from qtrace.qemu.block.drains import Scope, drainer, scope
from qtrace.qemu.block.requests import OTHER_WORK, circles, first_causes, in_flight

FORMAT = Node(0x1000, "top", "qcow2", None, None, None, None, children=(("file", 0x2000),))
FILE = Node(0x2000, "file", "nbd", None, None, None, None)
OTHER = Node(0x3000, "other", "file", None, None, None, None)
ASKED = ("qemu_coroutine_switch", "qio_channel_yield", "nbd_receive_reply", "nbd_co_do_receive_one")
LOCKED = ("qemu_coroutine_switch", "qemu_co_mutex_lock_slowpath", "qemu_co_mutex_lock")
QUEUED = ("qemu_coroutine_switch", "qemu_co_queue_wait_impl")
HANDED = ("qemu_coroutine_switch", "thread_pool_submit_co")
READ, BEHIND, JOB = 0x50, 0x60, 0x9000


def coroutine(address: int, frames: tuple[str, ...], holders: tuple[int, ...] = ()) -> Coroutine:
    return Coroutine(address, "entry", ASLEEP, frames=frames, whole=True, holders=holders)


def request(node: Node, co: int, offset: int = 0) -> Request:
    return Request(node.address + co, node.address, "read", offset, 512, co)


def look(*coroutines: Coroutine, requests: tuple[Request, ...] = (), **more: object) -> BlockLook:
    nodes = (FORMAT, FILE, OTHER)
    return replace(BlockLook(0, nodes, (), (), (), requests, coroutines=coroutines), **more)  # type: ignore[arg-type]


def test_who_waits_behind_a_request_is_no_cause() -> None:
    own = (request(FORMAT, READ), request(FILE, READ), request(FILE, BEHIND, 512))
    shown = look(coroutine(READ, ASKED), coroutine(BEHIND, QUEUED, (READ,)), requests=own)
    causes, behind = first_causes(in_flight(shown), shown)
    assert [(one.co.address, one.node) for one in causes if one.co] == [(READ, FILE)]
    assert [one.co.address for one in behind if one.co] == [BEHIND]


POOL = (Thread(7, "worker", "worker", "pread64"), Thread(8, "worker", "worker", "newfstatat"))


def pool(workers: dict[int, int], other: tuple[Thread, ...], busy: bool) -> BlockLook:
    """Two requests that were handed to the pool."""
    both = (request(FILE, READ), request(OTHER, BEHIND))
    tids = frozenset(thread.tid for thread in POOL if busy)
    handed = (coroutine(READ, HANDED), coroutine(BEHIND, HANDED))
    return look(*handed, requests=both, workers=workers, other_work=other, busy_pool=tids)


def test_a_request_for_which_no_worker_is_free_waits_behind_those_who_have_one() -> None:
    shown = pool({READ: 7}, (POOL[1],), busy=True)
    causes, behind = first_causes(in_flight(shown), shown)
    assert [one.what for one in causes] == ["read of 512 bytes at 0", OTHER_WORK]
    assert [one.wait.text for one in behind] == ["waits for a worker thread, of which none is free"]


@pytest.mark.parametrize(
    "shown",
    [pool({READ: 7}, (POOL[1],), busy=False), pool({}, (), busy=True)],
    ids=["one is idle", "nobody's work is known"],
)
def test_a_request_that_a_worker_may_have_is_a_cause_of_its_own(shown: BlockLook) -> None:
    causes, behind = first_causes(in_flight(shown), shown)
    assert (len([one for one in causes if one.co is not None]), behind) == (2, [])
    # Nor is it said that what a thread has in hand is no block request.
    assert OTHER_WORK not in [one.what for one in causes]


def test_a_coroutine_that_holds_what_a_request_needs_is_the_cause() -> None:
    """It need not have a request itself: a node's driver connects again, a job holds a lock."""
    shown = look(
        coroutine(READ, LOCKED, (0x70,)),
        coroutine(0x70, QUEUED, (0x80,)),
        coroutine(0x80, ("qemu_coroutine_switch", "qio_channel_yield", "qio_channel_read")),
        requests=(request(FILE, READ),),
    )
    causes, behind = first_causes(in_flight(shown), shown)
    assert [one.what for one in causes] == ["coroutine 0x80 of entry"]
    assert [one.co.address for one in behind if one.co] == [READ]


def test_where_no_end_shows_those_that_wait_are_told() -> None:
    shown = look(coroutine(READ, LOCKED), requests=(request(FILE, READ),))
    causes, behind = first_causes(in_flight(shown), shown)
    assert ([one.node for one in causes], behind) == ([FILE], [])


def test_coroutines_that_wait_for_one_another_are_a_circle() -> None:
    one, other = coroutine(READ, LOCKED, (BEHIND,)), coroutine(BEHIND, LOCKED, (READ,))
    shown = look(one, other, coroutine(0x70, LOCKED, (READ,)))
    (circle,) = circles(shown)
    assert {co.address for co in circle} == {READ, BEHIND}


@pytest.mark.parametrize(
    ("co", "device", "job"),
    [
        (coroutine(READ, ASKED), "", "bk"),
        (coroutine(READ, ASKED), "/machine/peripheral/vd/virtio-backend", ""),
        (replace(coroutine(READ, ASKED), jobs=(JOB,)), "/machine/peripheral/vd/x", "bk"),
        (coroutine(0x70, ASKED), "", "bk"),
    ],
    ids=["on its node", "a guest's on its node", "with the job in hand", "its own coroutine"],
)
def test_a_request_is_its_jobs(co: Coroutine, device: str, job: str) -> None:
    facts = JobFacts(0, False, False, "bk", 0x70, (FORMAT.address,))
    backend = Backend(0x4000, "", FORMAT.address, device, 1, "")
    requests = (request(FORMAT, co.address), request(FILE, co.address))
    shown = look(co, requests=requests, jobs={JOB: facts}, backends=(backend,))
    (one,) = in_flight(shown)
    assert one.job == job
    assert one.where.endswith(", for job bk") == bool(job)


def thread(*functions: str, sp: int = 0x100000) -> Thread:
    frames = tuple(f"{function}+0x1" for function in functions)
    return Thread(7, "", "main", "ppoll", frames=frames, whole=True, waits_at=(sp, 1))


def test_a_drain_of_a_node_waits_for_what_comes_through_it() -> None:
    requests = (request(FORMAT, READ), request(FILE, READ), request(OTHER, BEHIND))
    shown = look(coroutine(READ, ASKED), coroutine(BEHIND, ASKED), requests=requests)
    drains = thread("ppoll", "aio_poll", "bdrv_drained_begin", "main")
    of = scope(shown, drains, [1, FORMAT.address])
    assert of.what == "what is in flight on node top (qcow2)"
    assert [one.co.address for one in in_flight(shown) if of.has(one) and one.co] == [READ]
    assert scope(shown, drains, [1]) == Scope()
    everything = thread("ppoll", "aio_poll", "bdrv_drain_all_begin", "vm_stop", "main")
    assert scope(shown, everything, [FORMAT.address]) == Scope()


def test_who_reads_waits_for_its_own_request() -> None:
    own = replace(coroutine(READ, ASKED), argument=0x100040)
    shown = look(own, coroutine(BEHIND, ASKED))
    of = scope(shown, thread("ppoll", "aio_poll", "blk_pread", "main"), [OTHER.address])
    assert (of.what, of.co) == ("its own request", READ)


def test_who_writes_the_graph_waits_for_its_readers() -> None:
    shown = look(graph=GraphLock({0x10: 3, 0x20: 1}, is_written=False))
    of = scope(shown, thread("ppoll", "aio_poll", "bdrv_graph_wrlock", "main"), [])
    assert of.what == "4 readers of the block graph, and what they have in flight"


def test_who_waits_for_the_lock_of_one_that_reads_waits_for_a_request() -> None:
    vcpu = Thread(8, "", "vcpu", "ppoll", frames=("ppoll+0x1", "aio_poll+0x1", "blk_pwrite+0x1"))
    locks = Thread(7, "", "main", "futex", frames=("futex+0x1", "bql_lock_impl+0x1", "main+0x1"))
    shown = Look(0, threads=(locks, vcpu), bql_holder=8)
    assert drainer(shown, locks) == vcpu
    assert drainer(replace(shown, bql_holder=0), locks) is None


@pytest.mark.parametrize(
    ("functions", "what"),
    [
        ((*ASKED, "bdrv_co_common_block_status_above", "job_co_entry"), "block status query"),
        ((*ASKED, "bdrv_co_flush", "blk_co_flush"), "flush"),
        (("qemu_co_queue_wait_impl", "bdrv_co_flush"), "flush"),
        ((*ASKED, "blk_co_ioctl"), "ioctl"),
        ((*ASKED, "nbd_client_new"), ""),
        (("qemu_co_sleep_ns_wakeable", "bdrv_co_block_status"), ""),
    ],
)
def test_what_qemu_does_not_track_is_known_by_its_functions(
    functions: tuple[str, ...], what: str
) -> None:
    co = replace(coroutine(READ, functions), nodes=(FILE.address,))
    shown = in_flight(look(co))
    assert [(one.what, one.node) for one in shown] == ([(what, FILE)] if what else [])
