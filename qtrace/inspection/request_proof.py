"""Whether requests are stuck: looks until they move on, or it shows that nobody moves.

A request is stuck when it is the same in two looks, and whom it waits for cannot move (stopped,
frozen, ended), or owes something (bytes to read, a thread that hangs in the kernel) and did not run
at all for as long as a slow disk would take for several requests. That it merely takes long shows
nothing: a disk may be slow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from qtrace.inspection.blocks import BlockLooker
from qtrace.inspection.looker import Looker
from qtrace.inspection.whom import Outside, Whom
from qtrace.process.live_source import LiveSource
from qtrace.qemu.aio.findings import REQUEST_STUCK
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.block_model import BlockLook
from qtrace.qemu.block.coroutine_waits import OUTSIDE
from qtrace.qemu.block.requests import InFlight, first_causes, in_flight
from qtrace.units import show

# Looks after the first one, while a request of that one is still there. What is still the same
# after the third has waited for more than a moment.
AFTER_NS = (50_000_000, 150_000_000, 500_000_000)
# Whoever owes something and does not run for so long is not merely slow.
IDLE_NS = 5_000_000_000
LOOK_EVERY_NS = 500_000_000
# Requests of one finding that are told in full.
TOLD = 3


@dataclass(frozen=True)
class RequestLook:
    """The requests of one look: those at fault, whom each waits for, and those that wait for
    another one."""

    time_ns: int
    look: Look
    blocks: BlockLook
    causes: tuple[InFlight, ...]
    behind: tuple[InFlight, ...]
    whom: dict[tuple[int, ...], Whom] = field(default_factory=dict)

    def sentence(self, one: InFlight) -> str:
        """``read of 4096 bytes at 512 on node d (nbd): waits for a reply on fd 10, ...``."""
        return f"{one.where}: {self.whom[one.key].text}"


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
class RequestProof:
    """What looks have shown of requests.

    Attributes:
        findings: those that are stuck.
        waiting: those that were there in all looks, and may be slow, with how long in nanoseconds.
        last: the last look.
    """

    findings: tuple[RequestFinding, ...]
    waiting: tuple[InFlight, ...]
    waited_ns: int
    last: RequestLook


class Requests:
    """Looks at the requests of one QEMU."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._blocks = BlockLooker(looker)

    def look(self, look: Look | None = None) -> RequestLook:
        """One look; ``look``: one that was taken just now, with its details."""
        look = look or self._looker.look()
        blocks = self._blocks.look(look)
        causes, behind = first_causes(in_flight(blocks))
        source = self._looker.source
        if isinstance(source, LiveSource):
            outside = Outside(source.pid, source.memory, look, blocks)
            whom = {one.key: outside.of(one) for one in causes}
        else:
            # Of a core nobody is there to be asked.
            whom = {one.key: Whom(one.wait.text) for one in causes}
        return RequestLook(blocks.time_ns, look, blocks, tuple(causes), tuple(behind), whom)

    def prove(self, first: RequestLook) -> RequestProof:
        """Look until nothing of the first look is left, or it shows that it is stuck.

        Raises NoSuchProcess.
        """
        looks = [first]
        times = [first.time_ns + after for after in AFTER_NS]
        while _suspects(looks):
            if looks[-1].time_ns >= times[-1]:
                if not _needs_longer(looks):
                    break
                times.append(looks[-1].time_ns + LOOK_EVERY_NS)
            due = next(at for at in times if at > looks[-1].time_ns)
            time.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
            looks.append(self.look())
        return shown_by(looks)


def shown_by(looks: Sequence[RequestLook]) -> RequestProof:
    """What looks show together, the oldest first."""
    last = looks[-1]
    over_ns = last.time_ns - looks[0].time_ns
    suspects = _suspects(looks) if over_ns >= AFTER_NS[-1] else []
    stuck = [one for one in suspects if _why_stuck(looks, one)]
    groups: dict[str, list[InFlight]] = {}
    for one in stuck:
        groups.setdefault(last.whom[one.key].text, []).append(one)
    findings = [_finding(looks, group) for group in groups.values()]
    waiting = tuple(one for one in suspects if one not in stuck)
    return RequestProof(tuple(findings), waiting, over_ns, last)


def _suspects(looks: Sequence[RequestLook]) -> list[InFlight]:
    """The requests that were in one and the same wait for outsiders in all looks."""
    if looks[-1].look.stopped:
        return []
    keys = set.intersection(*({one.key for one in look.causes} for look in looks))
    return [one for one in looks[-1].causes if one.key in keys and one.wait.kind in OUTSIDE]


def _why_stuck(looks: Sequence[RequestLook], one: InFlight) -> str:
    """What shows that whom it waits for does not go on; empty when nothing does."""
    moments = [look.whom[one.key] for look in looks]
    first, last = moments[0], moments[-1]
    if last.tid and any(moment.moves != last.moves for moment in moments):
        return ""
    if all(moment.cannot_move for moment in moments):
        return "whom it waits for cannot move"
    over_ns = looks[-1].time_ns - looks[0].time_ns
    if over_ns >= IDLE_NS and last.owes and last.is_unmoved(first):
        return f"whom it waits for did not run for {show(over_ns, 'ns')}, and has it to do"
    return ""


def _needs_longer(looks: Sequence[RequestLook]) -> bool:
    """Whether only more time can tell of a request."""
    if looks[-1].time_ns - looks[0].time_ns >= IDLE_NS:
        return False
    return any(
        not _why_stuck(looks, one)
        and looks[-1].whom[one.key].owes
        and looks[-1].whom[one.key].is_unmoved(looks[0].whom[one.key])
        for one in _suspects(looks)
    )


def _finding(looks: Sequence[RequestLook], group: Sequence[InFlight]) -> RequestFinding:
    last = looks[-1]
    first, count = group[0], len(group)
    over_ns = last.time_ns - looks[0].time_ns
    text = last.sentence(first)
    if count > 1:
        text += f"; and {count - 1} more request{'s' if count > 2 else ''} for the same reason"
    behind = [one for one in last.behind if one.co is not None]
    if behind:
        text += f"; behind such wait {len(behind)} more"
    why = _why_stuck(looks, first)
    proof = f"the same in {len(looks)} looks over {show(over_ns, 'ns')}; {why}"
    lines = tuple(last.sentence(one) for one in group[:TOLD])
    return RequestFinding(
        text, lines, tuple(group[:TOLD]), last.whom[first.key], count, over_ns, proof
    )
