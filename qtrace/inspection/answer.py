"""All that looks at one QEMU have shown, the worst first: one answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qtrace.inspection.request_look import RequestLook
from qtrace.inspection.request_proof import RequestFinding, RequestProof, Waiting
from qtrace.qemu.aio.findings import SEVERITY, STUCK, Finding
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.drains import Scope, drainer, unshown
from qtrace.qemu.block.remarks import remarks
from qtrace.units import show

# Of what is in flight so many are told in full.
TOLD = 5


@dataclass(frozen=True)
class Below:
    """What a stuck thread waits for: what it is together, and each in words."""

    what: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What is stuck, what cannot be told, and where nothing is: where to look.

    Attributes:
        findings: of threads and of requests, the worst first.
        reasons: why it cannot be told whether there is another one.
        below: by the place in ``findings``, what that thread waits for.
        remarks: what is no finding, in words.
        requests: None where they were not looked at.
        slow: how many of them have been in flight for a while, which proves nothing.
    """

    findings: tuple[Finding | RequestFinding, ...] = ()
    reasons: tuple[str, ...] = ()
    below: dict[int, Below] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    requests: RequestLook | None = None
    slow: int = 0

    @property
    def told_apart(self) -> list[int]:
        """The places of the findings that no other one has told of already."""
        told = {line for below in self.below.values() for line in below.lines}
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
    scopes: Mapping[int, Scope] | None = None,
) -> Answer:
    """Put together what is known of threads and of requests.

    Args:
        notes: what else there is to say of what is no finding.
        scopes: by thread, for which requests one waits that findings tell of, where that is known.
    """
    last = proof.last
    all_of_them: list[Finding | RequestFinding] = [*findings, *proof.findings]
    both = sorted(all_of_them, key=lambda one: SEVERITY.index(one.kind))
    below = {
        number: _below(last, (scopes or {}).get(finding.thread.tid, Scope()))
        for number, finding in enumerate(both)
        if isinstance(finding, Finding) and waits_for_requests(look, finding)
    }
    below = {number: told for number, told in below.items() if told.lines}
    # That a command has stopped the guest, and hangs, is no reason of its own.
    main = any(one.kind == STUCK for one in both)
    blocks = replace(last.blocks, run_state="") if main else last.blocks
    told_already = {line for one in proof.findings for line in one.lines}
    told_already |= {line for told in below.values() for line in told.lines}
    more = [*remarks(look, blocks, _of_jobs(last, told_already)), *notes]
    if not both:
        more = [*_waiting(proof), *more]
    return Answer(tuple(both), tuple(reasons), below, tuple(more), last, len(proof.waiting))


def waits_for_requests(look: Look, finding: Finding) -> bool:
    """Whether a stuck thread waits for block requests, or somebody whom it waits for does, as
    their functions tell."""
    return finding.kind == STUCK and drainer(look, finding.thread) is not None


def _below(last: RequestLook, scope: Scope) -> Below:
    """The requests that a thread waits for: those that wait for outsiders, and for other things."""
    blocks = [one for one in last.causes if one.thread is None]
    causes = [one for one in blocks if scope.has(one)]
    behind = sum(scope.has(one) for one in last.behind)
    unshown_ones = [] if causes else unshown(last.blocks, scope)
    if not causes and not unshown_ones:
        scope, causes, behind = Scope(), blocks, len(last.behind)
    told = [last.sentence(one) for one in causes[:TOLD]] + unshown_ones[:TOLD]
    more = len(causes) - TOLD
    if more > 0:
        told.append(f"and {more} more")
    if behind:
        told.append(f"{behind} more wait{'s' if behind == 1 else ''} behind them")
    return Below(scope.what, tuple(told))


def _of_jobs(last: RequestLook, told: Collection[str]) -> dict[str, str]:
    """By job's id the first request that it waits for, in words; what is ``told`` is short."""
    found: dict[str, str] = {}
    for one in last.causes:
        text = last.sentence(one)
        found.setdefault(one.job, f"the {one.what}, as above" if text in told else text)
    return found


def _waiting(proof: RequestProof) -> list[str]:
    """What has been in flight for a while, and may be slow."""
    told = [waiting_words(proof.last, one) for one in proof.waiting[:TOLD]]
    more = len(proof.waiting) - len(told)
    return told + ([f"and {more} requests more"] if more > 0 else [])


def waiting_words(last: RequestLook, waiting: Waiting) -> str:
    """Of a request that may be slow: which, whom it waits for, and how long."""
    lasted = show(waiting.over_ns, "ns")
    how_long = (
        f"for at least {lasted}: it may be slow"
        if waiting.same
        else f"in each look over {lasted}: this one, or others like it"
    )
    return f"{last.sentence(waiting.one)}, {how_long}"


def slow_words(count: int) -> str:
    """Of requests that may be stuck, and may be slow."""
    return f"{count} request{'s' if count > 1 else ''} take{'' if count > 1 else 's'} long"
