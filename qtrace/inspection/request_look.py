"""One look at the requests of a QEMU: those at fault, whom each waits for, those behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from qtrace.errors import QtraceError
from qtrace.host.peer import Peer
from qtrace.host.sleeping import asleep_since_ns
from qtrace.inspection.blocks import BlockLooker
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.whom import Outside, Whom
from qtrace.process.live_source import LiveSource
from qtrace.process.process import Process
from qtrace.qemu.aio.model import Look
from qtrace.qemu.block.block_model import BlockLook
from qtrace.qemu.block.coroutine_waits import BLOCK_STATUS
from qtrace.qemu.block.requests import InFlight, first_causes, in_flight

# A server may be a client of another one, and so on.
MOST_HOPS = 3
READ = "read"


@dataclass(frozen=True)
class RequestLook:
    """The requests of one look: those at fault, whom each waits for, and those that wait for
    another one."""

    time_ns: int
    look: Look
    blocks: BlockLook
    causes: tuple[InFlight, ...]
    behind: tuple[InFlight, ...]
    whom: Mapping[tuple[int, ...], Whom] = field(default_factory=dict)

    def sentence(self, one: InFlight) -> str:
        """``read of 4096 bytes at 512 on node d (nbd): waits for a reply on fd 10, ...``."""
        return f"{one.where}: {self.whom[one.key].text}"


class Requests:
    """Takes looks at the requests of one QEMU, and of the QEMU programs that serve it.

    Args:
        before: the processes through which it was come to.
    """

    def __init__(self, looker: Looker, before: tuple[int, ...] = ()) -> None:
        self._looker = looker
        self._blocks = BlockLooker(looker)
        self._before = (*before, looker.source.pid)
        # None of a process that cannot be looked into.
        self._servers: dict[int, Requests | None] = {}
        self._moves: dict[int, tuple[int, int]] = {}

    def look(self, look: Look | None = None, *, follow: bool = False) -> RequestLook:
        """One look.

        Args:
            look: one that was taken just now, with its details.
            follow: into the QEMU programs that serve it, too.

        Raises:
            NoSuchProcess
        """
        look = look or self._looker.look()
        blocks = self._blocks.look(look)
        causes, behind = first_causes(in_flight(blocks), blocks)
        source = self._looker.source
        if isinstance(source, LiveSource):
            outside = Outside(source.pid, source.memory, look, blocks)
            whom = self._since({one.key: outside.of(one) for one in causes})
            if follow:
                served = _Servers(self)
                whom = {one.key: served.followed(one, whom[one.key]) for one in causes}
        else:
            # Of a core nobody is there to be asked.
            whom = {one.key: Whom(one.wait.text) for one in causes}
        return RequestLook(blocks.time_ns, look, blocks, tuple(causes), tuple(behind), whom)

    def _since(self, whom: dict[tuple[int, ...], Whom]) -> dict[tuple[int, ...], Whom]:
        """The same, with since when those of QEMU's threads have not run that have not since the
        look before."""
        before, self._moves = self._moves, {one.tid: one.moves for one in whom.values() if one.tid}
        for key, one in whom.items():
            if one.tid and before.get(one.tid) == one.moves:
                since_ns = asleep_since_ns(self._looker.pid, one.tid)
                if since_ns is None:
                    # It may have taken a second, and do so for each.
                    break
                whom[key] = replace(one, asleep_since_ns=since_ns)
        return whom

    def of_server(self, peer: Peer) -> RequestLook | None:
        """What a QEMU program has in hand that serves this one; None where it is none, or cannot be
        looked into."""
        if "qemu" not in peer.name or peer.held or peer.pid in self._before:
            return None
        if len(self._before) > MOST_HOPS:
            return None
        # It may end while it is being looked into.
        with suppress(QtraceError, OSError):
            if peer.pid not in self._servers:
                self._servers[peer.pid] = None
                looker = Looker(LiveQemu(Process(peer.pid)))
                self._servers[peer.pid] = Requests(looker, self._before)
            server = self._servers[peer.pid]
            return server.look(follow=True) if server else None
        self._servers[peer.pid] = None
        return None

    def kept_by(self, peer: Peer) -> list[str]:
        """What a QEMU program has in hand for those who cannot move, in words."""
        there = self.of_server(peer)
        causes = there.causes if there else ()
        return [
            there.sentence(one) for one in causes if there and there.whom[one.key].end.cannot_move
        ]


class _Servers:
    """What the servers of one look have in hand, each looked at once."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._looks: dict[int, RequestLook | None] = {}

    def followed(self, one: InFlight, whom: Whom) -> Whom:
        """The same, with whom its server waits for in turn."""
        for peer in whom.peers:
            if peer.pid not in self._looks:
                self._looks[peer.pid] = self._requests.of_server(peer)
            there = self._looks[peer.pid]
            inner = _made_of(one, whom, there.causes) if there else None
            if there is not None and inner is not None:
                return whom.through(peer, there.sentence(inner), inner.key, there.whom[inner.key])
        return whom


def _made_of(one: InFlight, whom: Whom, others: Sequence[InFlight]) -> InFlight | None:
    """What a server makes of a request: one of the same kind that overlaps with it; the server of a
    file system may be asked for more around it. Before an NBD server reads it asks where data lies
    (nbd_co_send_sparse_read() in nbd/server.c): that is told where it has nothing else in hand, and
    has read all that it was sent. Of what no request was made here the same holds."""
    if one.thread is not None:
        return others[0] if len(others) == 1 else None
    same = _same(one, others)
    if same is not None or one.request is None or len(others) != 1 or whom.queued:
        return same
    return others[0] if one.request.kind == READ and others[0].what == BLOCK_STATUS else None


def _same(one: InFlight, others: Iterable[InFlight]) -> InFlight | None:
    for other in others:
        if one.request is None or other.request is None:
            if one.request is other.request and one.what == other.what:
                return other
        elif one.request.kind == other.request.kind:
            begins = max(one.request.offset, other.request.offset)
            ends = min(_end(one), _end(other))
            if begins < ends:
                return other
    return None


def _end(one: InFlight) -> int:
    return one.request.offset + one.request.bytes if one.request else 0
