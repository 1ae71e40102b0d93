"""All that looks at one QEMU have shown, the worst first: one answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qtrace.inspection.request_proof import RequestFinding, RequestLook, RequestProof
from qtrace.qemu.aio.findings import SEVERITY, STUCK, Finding
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.remarks import remarks
from qtrace.qemu.block.requests import InFlight
from qtrace.units import show

# Who waits in one of these waits for requests that are in flight: of all nodes, of one, of a job.
# (The vCPUs' own writes, as of a flash chip, are requests, too.)
DRAINS = re.compile(
    r"(bdrv|blk)_(drain|do_drain|flush|unref|pread|pwrite|co_|pwritev|preadv)\w*|"
    r"bdrv_(graph_wrlock|drained_begin|reopen\w*|poll_co)\w*|job_(finish_sync|cancel_sync)\w*"
)
# Of what is in flight so many are told in full.
TOLD = 5


@dataclass(frozen=True)
class Answer:
    """What is stuck, what cannot be told, and where nothing is: where to look.

    Attributes:
        findings: of threads and of requests, the worst first.
        reasons: why it cannot be told whether there is another one.
        below: by the place in ``findings``, what that thread waits for, in words.
        remarks: what is no finding, in words.
        requests: None where they were not looked at.
    """

    findings: tuple[Finding | RequestFinding, ...] = ()
    reasons: tuple[str, ...] = ()
    below: dict[int, tuple[str, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    requests: RequestLook | None = None

    @property
    def told_apart(self) -> list[int]:
        """The places of the findings that no other one has told of already."""
        told = {line for lines in self.below.values() for line in lines}
        return [
            number
            for number, finding in enumerate(self.findings)
            if not (isinstance(finding, RequestFinding) and set(finding.lines) <= told)
        ]


def answer(
    look: Look,
    findings: Sequence[Finding],
    reasons: Sequence[str],
    proof: RequestProof,
    notes: Sequence[str] = (),
) -> Answer:
    """Put together what is known of threads and of requests.

    Args:
        notes: what else there is to say of what is no finding.
    """
    last = proof.last
    all_of_them: list[Finding | RequestFinding] = [*findings, *proof.findings]
    both = sorted(all_of_them, key=lambda one: SEVERITY.index(one.kind))
    below = {
        number: tuple(_lines(last, finding))
        for number, finding in enumerate(both)
        if isinstance(finding, Finding) and waits_for_requests(finding)
    }
    below = {number: lines for number, lines in below.items() if lines}
    # That a command has stopped the guest, and hangs, is no reason of its own.
    main = any(one.kind == STUCK for one in both)
    more = [*remarks(look, replace(last.blocks, run_state="") if main else last.blocks), *notes]
    if not both:
        more = [*_waiting(proof), *more]
    return Answer(tuple(both), tuple(reasons), below, tuple(more), last)


def waits_for_requests(finding: Finding) -> bool:
    """Whether a stuck thread waits for block requests, as its functions tell."""
    return finding.kind == STUCK and any(DRAINS.match(f) for f in finding.waits_in)


def _lines(last: RequestLook, finding: Finding) -> list[str]:
    """The requests that a thread waits for: those that wait for outsiders, and for other things."""
    causes: list[InFlight] = list(last.causes)
    told = [last.sentence(one) for one in causes[:TOLD]]
    more = len(causes) - len(told)
    behind = len(last.behind)
    if more > 0:
        told.append(f"and {more} more")
    if behind:
        told.append(f"{behind} more wait{'s' if behind == 1 else ''} behind them")
    return told


def _waiting(proof: RequestProof) -> list[str]:
    """What has been in flight for a while, and may be slow."""
    lasted = show(proof.waited_ns, "ns")
    told = [
        f"{proof.last.sentence(one)}, for at least {lasted}: it may be slow"
        for one in proof.waiting[:TOLD]
    ]
    more = len(proof.waiting) - len(told)
    return told + ([f"and {more} requests more, for at least {lasted}"] if more > 0 else [])
