"""Looks at a live QEMU at a steady pace: what each shows, together with those before it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qtrace.inspection.looker import Looker
from qtrace.inspection.proof import ENOUGH_NS, proven_again
from qtrace.inspection.request_look import RequestLook, Requests
from qtrace.inspection.request_proof import RequestFinding, RequestWatch
from qtrace.qemu.aio.findings import Finding
from qtrace.qemu.aio.model import Look


@dataclass(frozen=True)
class Watched:
    """What is known after a look.

    Attributes:
        findings: of threads, and of requests as they were last looked at.
        reasons: why it cannot be told whether there is another one.
        requests: the last look at what is in flight; None before the first.
    """

    look: Look
    findings: tuple[Finding | RequestFinding, ...]
    reasons: tuple[str, ...]
    requests: RequestLook | None


class Watch:
    """Of one QEMU; keeps the looks that a proof may need."""

    def __init__(self, looker: Looker) -> None:
        self.looker = looker
        self._looks: deque[Look] = deque()
        self._requests = RequestWatch(Requests(looker))
        self._last: RequestLook | None = None
        self._stuck: tuple[RequestFinding, ...] = ()

    def see(self, now_ns: int, *, details: bool = False) -> Watched:
        """Look now.

        Args:
            now_ns: CLOCK_MONOTONIC.
            details: handlers and the stacks of jobs, too.

        Raises:
            NoSuchProcess
        """
        due = self._requests.due(now_ns)
        look = self.looker.look(details=due or details)
        while len(self._looks) > 1 and look.time_ns - self._looks[1].time_ns >= ENOUGH_NS:
            self._looks.popleft()
        of_loops, reasons = proven_again(self.looker, self._looks, look)
        self._looks.append(look)
        if due:
            seen = self._requests.see(look)
            self._stuck, self._last = seen.findings, seen.last
        return Watched(look, (*of_loops, *self._stuck), tuple(reasons), self._last)
