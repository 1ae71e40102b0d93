"""Whether requests are stuck: looks until they move on, or it shows that nobody moves.

A request is stuck when it is the same in two looks, and whom it waits for cannot move (stopped,
frozen, ended), or is not connected any more, or owes something (bytes to read, a thread that hangs
in the kernel) and did not run at all for as long as a slow disk would take for several requests;
or when a thread of QEMU's has been in the kernel with it for as long as no guest waits for a disk.
That it merely takes long shows nothing: a disk may be slow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from qtrace.inspection.request_look import RequestLook, Requests
from qtrace.inspection.whom import Whom
from qtrace.qemu.aio.findings import REQUEST_STUCK
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.coroutine_waits import CONNECT, DEADLOCK, OUTSIDE, QUEUED, THROTTLED
from qtrace.qemu.block.requests import InFlight
from qtrace.units import show

# Looks after the first one, while a request of that one is still there. What is still the same
# after the third has waited for more than a moment.
AFTER_NS = (50_000_000, 150_000_000, 500_000_000)
# Whoever owes something and does not run for so long is not merely slow.
IDLE_NS = 5_000_000_000
# Linux gives up on a disk after so long (SD_TIMEOUT in drivers/scsi/sd.h, nvme's io_timeout), and
# on other devices as late as on a TPM that makes a key (TPM2_DURATION_LONG_LONG in
# drivers/char/tpm/tpm.h).
OVERDUE_NS, OTHER_OVERDUE_NS = 30_000_000_000, 300_000_000_000
LOOK_EVERY_NS = 500_000_000
# Whoever serves a request that was there in so many looks is looked into, if it is a QEMU program.
FOLLOWED_FROM = 2
# Requests of one finding that are told in full.
TOLD = 3


@dataclass(frozen=True)
class RequestFinding:
    """Requests that are stuck, and on whom; ``requests`` those that are told of, the first of
    ``count``."""

    sentence: str
    lines: tuple[str, ...]
    requests: tuple[InFlight, ...]
    whom: Whom
    count: int
    at_least_ns: int
    proof: str
    kind: str = REQUEST_STUCK
    looks: int = 2


@dataclass(frozen=True)
class Waiting:
    """A request that may be slow. Each look over ``over_ns`` has shown it; ``same``: certainly this
    one, else others like it may have come and gone."""

    one: InFlight
    over_ns: int
    same: bool


@dataclass(frozen=True)
class RequestProof:
    """What looks have shown of requests.

    Attributes:
        findings: those that are stuck.
        waiting: those that have been there for a while and may be slow.
        last: the last look.
    """

    findings: tuple[RequestFinding, ...]
    waiting: tuple[Waiting, ...]
    last: RequestLook


def prove(requests: Requests, first: RequestLook) -> RequestProof:
    """Look until nothing of the first look is left, or it shows that it is stuck.

    Raises NoSuchProcess.
    """
    looks = [first]
    times = [first.time_ns + after for after in AFTER_NS]
    while _left(looks):
        if looks[-1].time_ns >= times[-1]:
            # On a busy host a few looks take all of that time.
            if len(looks) > FOLLOWED_FROM and not _needs_longer(looks):
                break
            times.append(looks[-1].time_ns + LOOK_EVERY_NS)
        due = next(at for at in times if at > looks[-1].time_ns)
        time.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
        looks.append(requests.look(follow=len(looks) >= FOLLOWED_FROM))
    return shown_by(looks)


class RequestWatch:
    """Judges requests by looks that somebody takes at a steady pace.

    Args:
        over_ns: so far back looks are kept.
    """

    def __init__(self, requests: Requests, over_ns: int = IDLE_NS) -> None:
        self._requests = requests
        self._over_ns = over_ns
        self._looks: deque[RequestLook] = deque()

    def due(self, now_ns: int) -> bool:
        """Whether the last look is long enough ago."""
        return not self._looks or now_ns - self._looks[-1].time_ns >= LOOK_EVERY_NS

    def see(self, look: Look) -> RequestProof:
        """What the looks so far show together with one that was taken just now, with its details.

        Raises NoSuchProcess.
        """
        looks = self._looks
        while len(looks) > 1 and look.time_ns - looks[1].time_ns >= self._over_ns:
            looks.popleft()
        follow = len(looks) >= FOLLOWED_FROM and bool(_left([*looks][-FOLLOWED_FROM:]))
        looks.append(self._requests.look(look, follow=follow))
        return shown_by(list(looks))


def shown_by(looks: Sequence[RequestLook]) -> RequestProof:
    """What looks show together, the oldest first: of each request those in which it was there, up
    to the last one."""
    last = looks[-1]
    groups: dict[tuple[object, ...], list[InFlight]] = {}
    waiting = []
    for one in _left([last]):
        own = _with(looks, one)
        over_ns = last.time_ns - _since_ns(own, one)
        if last.time_ns - own[0].time_ns < AFTER_NS[-1]:
            continue
        if _why_stuck(own, one):
            whom = last.whom[one.key]
            pids = tuple(peer.pid for peer in (*whom.peers, *whom.end.peers))
            groups.setdefault(pids or (whom.text,), []).append(one)
        elif one.request is not None or _rests(own, one):
            kept = last.whom[one.key].has_kept(own[0].whom[one.key], over_ns)
            waiting.append(Waiting(one, over_ns, kept))
    findings = [_finding(looks, group) for group in groups.values()]
    return RequestProof(tuple(findings), tuple(waiting), last)


def _left(looks: Sequence[RequestLook]) -> list[InFlight]:
    """What was in all looks in one and the same wait: for outsiders, or for one another; a request
    also for other things (what a throttle group holds back has its own words)."""
    if looks[-1].look.stopped:
        return []
    keys = set.intersection(*({one.key for one in look.causes} for look in looks))
    return [one for one in looks[-1].causes if one.key in keys and _may_last(one)]


def _may_last(one: InFlight) -> bool:
    if one.wait.kind in OUTSIDE | {DEADLOCK}:
        return True
    return one.request is not None and one.wait.kind != THROTTLED


def _with(looks: Sequence[RequestLook], one: InFlight) -> list[RequestLook]:
    """The looks in which a request was there, without a break, up to the last one."""
    found: list[RequestLook] = []
    for look in reversed(looks):
        if one.key not in look.whom or look.look.stopped:
            break
        found.insert(0, look)
    return found


def _since_ns(looks: Sequence[RequestLook], one: InFlight) -> int:
    """Since when one is known to be there: the first look, or since when a thread of QEMU's that is
    in the kernel with it has not run."""
    asleep_ns = looks[-1].whom[one.key].asleep_since_ns
    return min(looks[0].time_ns, asleep_ns) if asleep_ns else looks[0].time_ns


def _rests(looks: Sequence[RequestLook], one: InFlight) -> bool:
    """Whether what is no tracked request is the same in all looks: one like it looks the same."""
    first, last = (look.whom[one.key].end for look in (looks[0], looks[-1]))
    if one.thread is not None and last.has_kept(first, looks[-1].time_ns - looks[0].time_ns):
        return True
    return last.cannot_move or last.is_unmoved(first)


def _why_stuck(looks: Sequence[RequestLook], one: InFlight) -> str:
    """What shows that whom it waits for does not go on; empty when nothing does.

    Args:
        looks: those in which it was there.
    """
    looks = _as_far(looks, one)
    over_ns = looks[-1].time_ns - looks[0].time_ns
    if over_ns < AFTER_NS[-1]:
        return ""
    if one.wait.kind == DEADLOCK:
        return "coroutines that wait for one another never go on"
    if one.wait.kind == CONNECT:
        return "QEMU has lost the connection to its server, and got none again"
    moments = [look.whom[one.key].end for look in looks]
    first, last = moments[0], moments[-1]
    if last.tid and any(moment.moves != last.moves for moment in moments):
        return ""
    if all(moment.cannot_move for moment in moments):
        return "whom it waits for cannot move"
    own = looks[-1].whom[one.key]
    overdue_ns = OVERDUE_NS if one.thread is None else OTHER_OVERDUE_NS
    if own.tid and (rests_ns := looks[-1].time_ns - _since_ns(looks, one)) >= overdue_ns:
        lasted = show(rests_ns, "ns")
        return (
            f"thread {own.tid} has it in hand and has not run for {lasted}: no guest waits so long"
        )
    if over_ns >= IDLE_NS and last.owes and last.is_unmoved(first):
        return f"whom it waits for did not run for {show(over_ns, 'ns')}, and has it to do"
    return ""


def _as_far(looks: Sequence[RequestLook], one: InFlight) -> list[RequestLook]:
    """Of the looks in which a request was there those, up to the last one, that followed it by the
    same way to its end."""
    keys = looks[-1].whom[one.key].keys
    first = next(
        (n for n in range(len(looks), 0, -1) if looks[n - 1].whom[one.key].keys != keys), 0
    )
    return list(looks[first:])


def _needs_longer(looks: Sequence[RequestLook]) -> bool:
    """Whether only more time can tell of a request."""
    for one in _left(looks):
        own = _as_far(looks, one)
        over_ns = own[-1].time_ns - own[0].time_ns
        if over_ns >= IDLE_NS or _why_stuck(own, one):
            continue
        first, last = (look.whom[one.key].end for look in (own[0], own[-1]))
        if (last.cannot_move and over_ns < AFTER_NS[-1]) or (last.owes and last.is_unmoved(first)):
            return True
    return False


def _finding(looks: Sequence[RequestLook], group: Sequence[InFlight]) -> RequestFinding:
    last = looks[-1]
    first, count = min(group, key=lambda one: _with(looks, one)[0].time_ns), len(group)
    own = _with(looks, first)
    over_ns = last.time_ns - own[0].time_ns
    at_least_ns = last.time_ns - _since_ns(own, first)
    text = last.sentence(first)
    if count > 1:
        text += f"; and {count - 1} more request{'s' if count > 2 else ''} for the same reason"
    behind = [one for one in last.behind if one.co is not None]
    queued = sum(one.wait.kind == QUEUED for one in behind)
    if more := len(behind) - queued:
        text += f"; behind such wait {more} more"
    if queued:
        more_requests = f"{queued} more request{'s' if queued > 1 else ''}"
        text += f"; for {more_requests} no worker thread is free"
    why = _why_stuck(own, first)
    proof = f"the same in {len(own)} looks over {show(over_ns, 'ns')}; {why}"
    told = [first, *(one for one in group if one is not first)][:TOLD]
    lines = tuple(last.sentence(one) for one in told)
    return RequestFinding(
        text, lines, tuple(told), last.whom[first.key].end, count, at_least_ns, proof
    )
