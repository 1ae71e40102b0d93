"""Looks at a live QEMU at a steady pace: what each shows, together with those before it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from qtrace.inspection.glance import Glance
from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import ENOUGH_NS, prove, proven_again
from qtrace.inspection.request_look import RequestLook, Requests
from qtrace.inspection.request_proof import RequestFinding, RequestWatch
from qtrace.qemu.aio.findings import Finding, explain, keeps_big_lock
from qtrace.qemu.aio.model import Look


@dataclass(frozen=True)
class Watched:
    """What is known after a look.

    Attributes:
        findings: of threads, and of requests as they were last looked at.
        reasons: why it cannot be told whether there is another one.
        requests: the last look at what is in flight; None before the first.
        glanced: whether it is merely known that all loops still sleep where ``look`` saw them in
            their loops; all else is that look's.
    """

    look: Look
    findings: tuple[Finding | RequestFinding, ...]
    reasons: tuple[str, ...]
    requests: RequestLook | None
    glanced: bool = False


class Watch:
    """Of one QEMU; keeps the looks that a proof may need.

    Args:
        glances_ns: for so long after a look that showed nothing at all, glances may take the place
            of looks: a hang is seen as soon, a request that is in flight with an idle loop so much
            later.
    """

    def __init__(self, looker: Looker, *, glances_ns: int = 0) -> None:
        self.looker = looker
        self._glances_ns = glances_ns
        self._glance = Glance(looker)
        self._calm: Watched | None = None
        self._looks: deque[Look] = deque()
        self._requests = RequestWatch(Requests(looker))
        self._last: RequestLook | None = None
        self._stuck: tuple[RequestFinding, ...] = ()
        self._keeper = 0

    def see(self, now_ns: int, *, details: bool = False) -> Watched:
        """Look now.

        Args:
            now_ns: CLOCK_MONOTONIC.
            details: handlers and the stacks of jobs, too.

        Raises:
            NoSuchProcess
        """
        calm = self._calm
        if calm is not None and not details and now_ns - calm.look.time_ns < self._glances_ns:
            if self._glance.holds():
                return calm
            self._calm = None
        due = self._requests.due(now_ns)
        look = self.looker.look(details=due or details)
        while len(self._looks) > 1 and look.time_ns - self._looks[1].time_ns >= ENOUGH_NS:
            self._looks.popleft()
        of_loops, reasons = proven_again(self.looker, self._looks, look)
        if not of_loops and self._is_kept(look):
            # Who has the BQL in two looks may have had it all the time: many more tell.
            proof = prove(self.looker, look)
            of_loops, reasons = proof.findings, proof.reasons
        self._looks.append(look)
        if due:
            seen = self._requests.see(look)
            self._stuck, self._last = seen.findings, seen.last
        watched = Watched(look, (*of_loops, *self._stuck), tuple(reasons), self._last)
        self._calm = self._if_calm(watched) if self._glances_ns else None
        return watched

    def _is_kept(self, look: Look) -> bool:
        """Whether the same thread has the BQL as in the look before, and the main loop sleeps."""
        before, keeper = self._keeper, None if look.stopped else keeps_big_lock(look)
        self._keeper = keeper.tid if keeper is not None else 0
        return self._keeper != 0 and self._keeper == before

    @property
    def is_calm(self) -> bool:
        """Whether the last look left nothing to be explained, so that a glance may follow."""
        return self._calm is not None

    def suspects(self, watched: Watched) -> tuple[Finding, ...]:
        """What its look shows that may be a hang, and no look has proven yet."""
        return () if self.is_calm or watched.findings else tuple(explain(watched.look))

    def may_hold(self, suspect: Finding) -> bool:
        """Whether its thread has not run since, or polls, where it wakes up again and again.

        A small part of what a look costs: a busy guest's main loop waits for the BQL in nearly
        each.
        """
        return suspect.polls is not None or not self.looker.has_run(suspect.thread)

    def _if_calm(self, watched: Watched) -> Watched | None:
        """What a glance after it would show; None where only a look tells."""
        requests = watched.requests
        if watched.findings or watched.reasons or requests is None:
            return None
        if requests.causes or requests.behind:
            return None
        self._glance.remember(watched.look)
        return replace(watched, glanced=True) if self._glance.is_good else None
