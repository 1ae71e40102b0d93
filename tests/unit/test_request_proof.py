"""When a request is stuck, and when it is merely slow: what looks show together."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from qtrace.host.peer import Peer
from qtrace.inspection.request_look import RequestLook, Requests
from qtrace.inspection.request_proof import IDLE_NS, prove, shown_by
from qtrace.inspection.whom import Whom
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.block.block_model import ASLEEP, BlockLook, Coroutine, Node, Request
from qtrace.qemu.block.coroutine_waits import REPLY, CoroutineWait
from qtrace.qemu.block.requests import InFlight

SECOND = 1_000_000_000
STOPPED = Peer(7, "qemu-nbd", "T", held="stopped by a signal (SIGSTOP)", turns=5)
ASLEEP_PEER = Peer(7, "server", "S", turns=5)
NODE = Node(1, "d", "nbd", None, None, None, None)
WAIT = CoroutineWait(REPLY, "waits for a reply")
WORKER = Thread(3, "worker", "worker", "newfstatat")


def request(offset: int = 0, sleeps_at: int = 100) -> InFlight:
    co = Coroutine(0x50, "entry", ASLEEP, sleeps_at=(sleeps_at, 1), fds=(9,))
    own = Request(0x40, NODE.address, "read", offset, 512, co.address)
    return InFlight(own, f"read of 512 bytes at {offset}", NODE, (NODE,), None, co, WAIT)


def look(time_ns: int, whom: Whom, one: InFlight | None = None, held: str = "") -> RequestLook:
    one = one or request()
    shown = Look(time_ns, held=held)
    return RequestLook(time_ns, shown, BlockLook(time_ns), (one,), (), {one.key: whom})


def on(peer: Peer, queued: int = 0) -> Whom:
    return Whom("waits for a reply on fd 9", (peer,), queued)


def test_whose_server_is_stopped_is_stuck_after_half_a_second() -> None:
    assert shown_by([look(0, on(STOPPED)), look(SECOND // 4, on(STOPPED))]).findings == ()
    (finding,) = shown_by([look(0, on(STOPPED)), look(SECOND // 2, on(STOPPED))]).findings
    assert finding.sentence == "read of 512 bytes at 0 on node d (nbd): waits for a reply on fd 9"
    assert (finding.count, finding.at_least_ns) == (1, SECOND // 2)


@pytest.mark.parametrize(
    "other",
    [
        look(SECOND, on(STOPPED), request(offset=512)),
        look(SECOND, on(STOPPED), request(sleeps_at=200)),
        look(SECOND, on(ASLEEP_PEER)),
        look(SECOND, on(STOPPED), held="stopped by a signal (SIGSTOP)"),
    ],
    ids=["another request", "the same goes on", "the server was let go on", "QEMU itself is held"],
)
def test_one_look_that_shows_something_else_is_enough(other: RequestLook) -> None:
    assert shown_by([look(0, on(STOPPED)), other]).findings == ()


class Late(Requests):
    """Each look comes so late that two take all of the time that they have; those that follow the
    server to its own one show that to be stopped."""

    def __init__(self) -> None:
        pass

    def look(self, _look: Look | None = None, *, follow: bool = False) -> RequestLook:
        inner = replace(request(), what="inner")
        through = on(ASLEEP_PEER).through(ASLEEP_PEER, "inner", inner.key, on(STOPPED))
        at_ns = time.monotonic_ns()
        return look(at_ns, through if follow else on(ASLEEP_PEER))


def test_however_late_looks_come_a_server_is_followed_to_its_own_one() -> None:
    proof = prove(Late(), look(time.monotonic_ns() - SECOND, on(ASLEEP_PEER)))
    (finding,) = proof.findings
    assert finding.whom.end.peers == (STOPPED,)


def test_a_server_that_owes_something_and_does_not_run_is_no_slow_one() -> None:
    owing = on(ASLEEP_PEER, queued=28)
    assert shown_by([look(0, owing), look(IDLE_NS - 1, owing)]).findings == ()
    assert len(shown_by([look(0, owing), look(IDLE_NS, owing)]).findings) == 1


@pytest.mark.parametrize(
    "later",
    [
        on(ASLEEP_PEER),
        on(replace(ASLEEP_PEER, turns=6), queued=28),
        on(ASLEEP_PEER, queued=27),
        on(replace(ASLEEP_PEER, turns=0), queued=28),
        on(replace(ASLEEP_PEER, wakes=True), queued=28),
    ],
    ids=["it has read all", "it ran", "it reads", "whether it ran is not known", "it will wake up"],
)
def test_a_server_that_may_be_slow_is_told_and_no_finding(later: Whom) -> None:
    proof = shown_by([look(0, on(ASLEEP_PEER, queued=28)), look(2 * IDLE_NS, later)])
    assert proof.findings == ()
    assert [one.one.what for one in proof.waiting] == ["read of 512 bytes at 0"]
    assert proof.waiting[0].over_ns == 2 * IDLE_NS


@pytest.mark.parametrize(
    ("first", "later", "same"),
    [
        (on(ASLEEP_PEER), on(replace(ASLEEP_PEER, wakes=True)), True),
        (on(ASLEEP_PEER), on(replace(ASLEEP_PEER, turns=6)), False),
        (Whom("far"), Whom("far", silent_ns=SECOND), True),
        (Whom("far"), Whom("far", silent_ns=SECOND - 1), False),
        (Whom("", tid=3, moves=(1, 1)), Whom("", tid=3, moves=(1, 1)), True),
        (Whom("", tid=3, moves=(1, 1)), Whom("", tid=3, moves=(2, 1)), False),
        (Whom(""), Whom(""), False),
    ],
    ids=["it did not run", "it ran", "nothing came", "something came", "the worker is at it",
         "the worker ran", "nothing is known"],
)  # fmt: skip
def test_one_request_is_told_from_others_like_it(first: Whom, later: Whom, same: bool) -> None:
    """A guest may write one block again and again: coroutines and their stacks are reused."""
    (waiting,) = shown_by([look(0, first), look(SECOND, later)]).waiting
    assert waiting.same == same


def test_a_worker_that_has_run_is_at_it() -> None:
    first, later = (
        replace(on(STOPPED), tid=3, moves=(1, 1)),
        replace(on(STOPPED), tid=3, moves=(2, 1)),
    )
    assert shown_by([look(0, first), look(SECOND, later)]).findings == ()
    assert len(shown_by([look(0, first), look(SECOND, first)]).findings) == 1


def test_a_worker_that_has_not_run_for_as_long_as_no_guest_waits_is_stuck() -> None:
    """As on a file system that is frozen, or whose server is on another host."""
    first = Whom("waits for worker thread 3, which is in pwrite64", tid=3, moves=(1, 1))
    for rested, count in ((29, 0), (30, 1)):
        later = replace(first, asleep_since_ns=(100 - rested) * SECOND)
        proof = shown_by([look(99 * SECOND, first), look(100 * SECOND, later)])
        assert len(proof.findings) == count
        assert [one.over_ns for one in proof.waiting] == [29 * SECOND] * (1 - count)
    (finding,) = proof.findings
    assert finding.at_least_ns == 30 * SECOND
    assert finding.proof.endswith("has not run for 30 s: no guest waits so long")
    # A TPM may take minutes for a key.
    work = InFlight(None, "a device's work", None, (), None, None, WAIT, thread=WORKER)
    for rested, count in ((299, 0), (300, 1)):
        later = replace(first, asleep_since_ns=(400 - rested) * SECOND)
        looks = [look(399 * SECOND, first, work), look(400 * SECOND, later, work)]
        assert len(shown_by(looks).findings) == count
    # It has run, and waits again.
    moved = replace(first, moves=(2, 1), asleep_since_ns=99 * SECOND)
    assert shown_by([look(99 * SECOND, first), look(100 * SECOND, moved)]).findings == ()


def test_a_server_that_waits_for_its_own_stopped_server_is_followed_to_it() -> None:
    inner = request(offset=512)
    moving = on(replace(ASLEEP_PEER, turns=9))
    followed = moving.through(ASLEEP_PEER, "the same", inner.key, on(STOPPED))
    # The way to its end was not looked for at once.
    looks = [look(0, moving), look(SECOND // 4, followed), look(SECOND // 2, followed)]
    assert shown_by(looks).findings == ()
    (finding,) = shown_by([*looks, look(SECOND, followed)]).findings
    assert finding.whom.peers == (STOPPED,)
    assert "process 7 has it in hand: the same" in finding.sentence


def test_a_server_that_goes_on_with_another_request_is_not_stuck() -> None:
    looks = [
        look(second * SECOND, on(ASLEEP_PEER).through(ASLEEP_PEER, "", (second,), on(STOPPED)))
        for second in range(4)
    ]
    assert shown_by(looks).findings == ()


def test_a_request_that_came_later_has_its_own_looks() -> None:
    new = request(offset=512)
    both = replace(
        look(SECOND, on(STOPPED)),
        causes=(request(), new),
        whom={one.key: on(STOPPED) for one in (request(), new)},
    )
    looks = [look(0, on(STOPPED)), both, replace(both, time_ns=2 * SECOND)]
    (finding,) = shown_by(looks).findings
    assert (finding.count, finding.at_least_ns) == (2, 2 * SECOND)
    (finding,) = shown_by([look(0, on(STOPPED), request(offset=4096)), *looks[1:]]).findings
    assert (finding.count, finding.at_least_ns) == (2, SECOND)


def test_what_is_not_tracked_is_slow_only_where_its_server_rests() -> None:
    """A job asks one thing after the other from the same place: each looks like the first."""
    one = replace(request(), request=None, what="block status query")
    moves = on(replace(ASLEEP_PEER, turns=6), queued=28)
    rests = on(ASLEEP_PEER, queued=28)
    assert shown_by([look(0, rests, one), look(SECOND, moves, one)]).waiting == ()
    assert shown_by([look(0, rests, one), look(SECOND, rests, one)]).waiting[0].one == one
