"""Everything that looks at a live QEMU show of what is stuck in it: threads and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from qtrace.host.descriptors import Descriptors
from qtrace.inspection.answer import Answer, answer
from qtrace.inspection.looker import Looker
from qtrace.inspection.outside import bystanders, with_outside
from qtrace.inspection.proof import Proof, prove
from qtrace.inspection.request_look import Requests
from qtrace.inspection.request_proof import prove as prove_requests
from qtrace.inspection.surroundings import kept_waiting, surroundings
from qtrace.inspection.vhost_user import backends, without_backend
from qtrace.process.process import arguments_of
from qtrace.qemu.aio.findings import Finding, explain
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.block_model import BlockLook
from qtrace.qemu.block.drains import Scope, depth, drainer, scope
from qtrace.qemu.block.remarks import SAVING, migrating

TRIES_AFTER_HOLD = 4


@dataclass(frozen=True)
class Inspected:
    """What looks showed; ``look`` is the last one that the answer's findings of threads are of."""

    look: Look
    answer: Answer


class Inspector:
    """Asks one live QEMU, as often as anybody likes; what it learns is kept in between.

    Attributes:
        requests: takes the looks at what is in flight.
    """

    def __init__(self, looker: Looker) -> None:
        self.looker = looker
        self.requests = Requests(looker)

    def ask(self, look: Look | None = None, *, held: bool = False) -> Inspected:
        """Look until it is known what is in the way: at once where nothing is, else some seconds.

        Args:
            look: one that was taken just now, with its details.
            held: the process was for that look. Whatever slept has run since, to sleep again, and
                on a busy host it may not have come to that yet.

        Raises:
            NoSuchProcess
        """
        looker, requests = self.looker, self.requests
        look = look or looker.look()
        first = requests.look(None if held else look)
        proof = self._prove(look, held)
        of_requests = prove_requests(requests, first)
        quiet = not (proof.findings or of_requests.findings or proof.look.stopped)
        run_state = of_requests.last.blocks.run_state
        # A dump is a thread's of its own.
        dumping = bystanders(proof.look) if run_state == SAVING else set()
        shown = with_outside(looker, proof.look, migrating(proof.look) | dumping)
        blocks = of_requests.last.blocks
        # An NBD client's requests have been followed to its server.
        client = any(node.driver == "nbd" for node in blocks.nodes or ())
        into = None if client else requests
        reasons, around = list(proof.reasons), []
        if quiet:
            descriptors = Descriptors(looker.pid)
            behind = backends(looker.pid, descriptors, requests)
            reasons += [*kept_waiting(looker, proof.look), *chain.from_iterable(behind.values())]
            reasons += without_backend(arguments_of(looker.pid), descriptors)
            around = list(surroundings(looker, proof.look, run_state, descriptors, into, behind))
        scopes = self._scopes(proof.look, proof.findings, of_requests.last.blocks)
        told = answer(shown, proof.findings, reasons, of_requests, around, scopes)
        return Inspected(proof.look, told)

    def _scopes(
        self, look: Look, findings: Sequence[Finding], blocks: BlockLook
    ) -> dict[int, Scope]:
        """By thread of a finding, for which requests it, or whom it waits for, waits."""
        found = {}
        for finding in findings:
            thread = drainer(look, finding.thread)
            if thread is not None:
                names, frames = self.looker.frames_of(thread.tid)
                inner = frames[: depth(names) + 2]
                held = [value for frame in inner for value in frame.registers.values()]
                found[finding.thread.tid] = scope(blocks, thread, held)
        return found

    def _prove(self, look: Look, held: bool) -> Proof:
        for _ in range(TRIES_AFTER_HOLD if held else 1):
            proof = prove(self.looker, self.looker.look() if held and not look.stopped else look)
            if proof.findings or not explain(proof.look):
                break
        return proof
