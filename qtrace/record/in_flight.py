"""While recording: the block requests that a thread waits for which does not come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtrace.inspection.answer import waits_for_requests
from qtrace.inspection.looker import Looker
from qtrace.inspection.request_look import RequestLook, Requests
from qtrace.qemu.aio.findings import Finding
from qtrace.qemu.aio.model import Look
from qtrace.units import show

# So many of them are written down.
TOLD = 5


class InFlight:
    """The requests of one target, and since when each is known to be there."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._requests: Requests | None = None
        self._since: dict[tuple[int, ...], int] = {}
        self._last: RequestLook | None = None

    def see(self) -> None:
        """Look at what is in flight now. Raises NoSuchProcess."""
        if self._requests is None:
            self._requests = Requests(self._looker)
        self._last = look = self._requests.look()
        self._since = {one.key: self._since.get(one.key, look.time_ns) for one in look.causes}

    def told(self) -> list[dict[str, Any]]:
        """Those that wait for somebody outside, or for a reason of their own, the oldest first: in
        words, and since when by CLOCK_MONOTONIC."""
        look = self._last
        if look is None:
            return []
        oldest = sorted(look.causes, key=lambda one: self._since[one.key])
        return [
            {"what": look.sentence(one), "since_ns": self._since[one.key]} for one in oldest[:TOLD]
        ]

    def added_to(self, look: Look, finding: Finding) -> Finding:
        """A finding that tells of the requests that its thread waits for."""
        if not waits_for_requests(look, finding) or self._last is None:
            return finding
        told = self.told()
        if not told:
            return finding
        lasted = show(self._last.time_ns - told[0]["since_ns"], "ns")
        more = len(self._last.causes) - 1
        text = f"in flight for at least {lasted}: {told[0]['what']}"
        text += f" (and {more} more)" if more else ""
        return replace(finding, sentence=f"{finding.sentence}; {text}")
