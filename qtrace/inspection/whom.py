"""Whom outside of QEMU a request waits for: a descriptor's other end, or what a worker is in."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace

from qtrace.host.descriptors import Descriptor, Descriptors
from qtrace.host.peer import ENDED, Peer
from qtrace.machine.memory import Memory, read_word
from qtrace.process.call_arguments import Descriptor as ByDescriptor
from qtrace.process.call_arguments import Path as ByPath
from qtrace.process.call_arguments import waited_for
from qtrace.qemu.aio.model import Look, Thread
from qtrace.qemu.block.block_model import ASLEEP, BlockLook, Node
from qtrace.qemu.block.coroutine_waits import (
    CONNECT,
    DATA,
    IO_URING,
    KERNEL,
    OTHER,
    REPLY,
    ROOM,
    WORKER,
    wait_of,
)
from qtrace.qemu.block.requests import InFlight

WORD = 8
# What a thread that makes a connection for others calls.
CONNECTING = frozenset({"nbd_receive_negotiate", "qio_channel_socket_connect_sync"})


@dataclass(frozen=True)
class Whom:
    """Who has a request in hand, at one moment.

    Attributes:
        text: as the rest of a sentence: ``waits for a reply on fd 10, unix socket nbd.sock, ...``.
        peers: the processes at the other end, as far as they are seen.
        queued: bytes that they have been sent and have not read, or not acknowledged.
        silent_ns: for so long nothing has come from there; None where that is not known.
        tid, moves: QEMU's thread that is at it, 0 for none, and what changes when that has run.
        asleep_since_ns: since when at the latest that has not run, by CLOCK_MONOTONIC; 0 where that
            is not known, or was not asked, as it has run since the look before.
        key: of the request that the peer, a QEMU program, has made of it (``InFlight.key``).
        beyond: whom that one waits for; None where it was not followed to there.
    """

    text: str
    peers: tuple[Peer, ...] = ()
    queued: int = 0
    silent_ns: int | None = None
    tid: int = 0
    moves: tuple[int, int] = (0, 0)
    asleep_since_ns: int = 0
    key: tuple[int, ...] = ()
    beyond: Whom | None = None

    def through(self, peer: Peer, sentence: str, key: tuple[int, ...], beyond: Whom) -> Whom:
        """The same, whose peer waits for somebody in turn."""
        text = f"{self.text}; process {peer.pid} has it in hand: {sentence}"
        return replace(self, text=text, key=key, beyond=beyond)

    @property
    def keys(self) -> tuple[tuple[int, ...], ...]:
        """Of the requests on the way to the end."""
        return (self.key, *self.beyond.keys) if self.beyond else ()

    @property
    def end(self) -> Whom:
        """Who has it in hand at the end."""
        return self.beyond.end if self.beyond else self

    @property
    def cannot_move(self) -> bool:
        """Whether none of them can go on by itself: stopped, frozen, held by a tracer, ended."""
        return bool(self.peers) and all(p.held or p.state in ENDED for p in self.peers)

    @property
    def owes(self) -> bool:
        """Whether it shows that they have work to do: bytes to read, or a thread that hangs."""
        return bool(self.queued) or any(peer.hangs for peer in self.peers)

    def is_unmoved(self, earlier: Whom) -> bool:
        """Whether none of them has run at all since an earlier moment, nor taken a byte, nor is
        about to by itself."""
        if not self.peers:
            return bool(self.queued) and self.queued == earlier.queued
        wakes = any(peer.wakes for peer in self.peers)
        return not wakes and self._has_not_run(earlier) and self.queued == earlier.queued

    def has_kept(self, earlier: Whom, over_ns: int) -> bool:
        """Whether it shows that they have had one and the same request since an earlier moment,
        ``over_ns`` ago, and not others like it: a guest may write one block again and again."""
        if self.tid:
            return (self.tid, self.moves) == (earlier.tid, earlier.moves)
        if self.silent_ns is not None and self.silent_ns >= over_ns:
            return True
        if self.beyond and earlier.beyond and self.key == earlier.key:
            return self._has_not_run(earlier) or self.beyond.has_kept(earlier.beyond, over_ns)
        return self._has_not_run(earlier)

    def _has_not_run(self, earlier: Whom) -> bool:
        """Whether none of the processes has run since."""
        known = bool(self.peers) and all(peer.turns for peer in self.peers)
        same = {p.pid: p.turns for p in self.peers} == {p.pid: p.turns for p in earlier.peers}
        return known and same


class Outside:
    """Looks up whom requests wait for, at one moment; each descriptor once."""

    def __init__(self, pid: int, memory: Memory, look: Look, blocks: BlockLook) -> None:
        self._memory = memory
        self._look = look
        self._blocks = blocks
        self._descriptors = Descriptors(pid)
        self._known: dict[tuple[int, bool | None], Descriptor] = {}
        waits = (wait_of(co) for co in blocks.coroutines or ())
        self._submitted = Counter(wait.text for wait in waits if wait.kind == KERNEL)

    def of(self, one: InFlight) -> Whom:
        """Whom a request waits for; of what waits inside of QEMU only the words."""
        kind = one.wait.kind
        if kind in (REPLY, ROOM, DATA) and one.co is not None and one.co.fds:
            found = self._describe(one.co.fds[0], kind == ROOM)
            return _of_descriptor(f"{one.wait.text} on {found.text}", found)
        if one.thread is not None:
            return self._of_worker(one, one.thread)
        if kind == WORKER and one.co is not None:
            thread = self._look.thread(self._blocks.workers.get(one.co.address, 0))
            return self._of_worker(one, thread) if thread else Whom(one.wait.text)
        if kind == CONNECT and one.node is not None:
            return self._of_connecting(one, one.node)
        if kind == KERNEL and one.node is not None:
            return self._of_kernel(one, one.node)
        if one.co is not None and one.co.state != ASLEEP and one.node is not None:
            return self._of_running(one, one.co.tid, one.node)
        if kind == OTHER and one.request is not None and one.node is not None:
            return self._of_driver(one, one.node)
        return Whom(one.wait.text)

    def _of_driver(self, one: InFlight, node: Node) -> Whom:
        """Whom a driver waits for that asks its server by a library (iscsi, nfs, curl): the
        descriptors whose handlers have the node's own state, or a piece that leads to it, as
        curl's sockets do (CURLSocket in block/curl.c: its second member)."""
        fds = {
            handler.fd
            for handler in self._look.handlers
            if node.opaque and handler.opaque and not handler.deleted
            if node.opaque in (handler.opaque, read_word(self._memory, handler.opaque + WORD))
        }
        if len(fds) != 1:
            return Whom(one.wait.text)
        found = self._describe(fds.pop(), None)
        return _of_descriptor(f"waits for its server on {found.text}", found)

    def _of_connecting(self, one: InFlight, node: Node) -> Whom:
        """Whom a driver waits for that makes its connection anew, in a thread of its own or again
        and again (nbd/client-connection.c)."""
        text = one.wait.text + (f", {node.filename}" if node.filename else "")
        threads = [t for t in self._look.threads if CONNECTING & set(t.functions)]
        if len(threads) != 1:
            return Whom(text)
        (thread,) = threads
        for waited in waited_for(self._memory, thread.blocked_in, thread.arguments):
            if isinstance(waited, ByDescriptor) and waited.connects_to:
                found = self._descriptors.connecting(waited.fd, waited.connects_to)
            elif isinstance(waited, ByDescriptor):
                found = self._describe(waited.fd, waited.writes)
            else:
                continue
            where = f"thread {thread.tid}, which is in {thread.blocked_in}"
            return _of_descriptor(f"{one.wait.text} by {where} on {found.text}", found)
        return Whom(text)

    def _of_kernel(self, one: InFlight, node: Node) -> Whom:
        """Whom asynchronous I/O waits for: its node's file."""
        counts, found = self._counts(one.wait.text), self._file_of(node)
        if found is None:
            return Whom(one.wait.text + counts)
        return _of_descriptor(f"{one.wait.text} on {found.text}{counts}", found)

    def _of_running(self, one: InFlight, tid: int, node: Node) -> Whom:
        """Whom QEMU's own thread waits for that is in the kernel with a request."""
        thread, found = self._look.thread(tid), self._file_of(node)
        if thread is None or not thread.blocked_in or found is None:
            return Whom(one.wait.text)
        text = f"is in {thread.blocked_in} in thread {tid}, of {found.text}"
        moves = (thread.cpu_ns, thread.turns)
        return Whom(text, _known_peers(found), tid=tid, moves=moves)

    def _file_of(self, node: Node) -> Descriptor | None:
        """The file of a node, whose descriptor is what BDRVRawState begins with
        (block/file-posix.c). It must bear the node's name."""
        raw = self._memory.read(node.opaque, 4) if node.opaque else b""
        if len(raw) < 4 or not node.filename:
            return None
        found = self._describe(int.from_bytes(raw, "little"), None)
        same = os.path.basename(found.name) == os.path.basename(node.filename)
        return found if same else None

    def _counts(self, text: str) -> str:
        """How many requests QEMU has given to the kernel that way, and what that has to say."""
        counted = f"; {self._submitted[text]} such in flight"
        rings = self._descriptors.rings() if text.endswith(IO_URING) else []
        for ring in rings:
            counted += f", {ring.in_flight} by the kernel's count on fd {ring.fd}"
        return counted

    def _of_worker(self, one: InFlight, thread: Thread) -> Whom:
        where = f"{thread.blocked_in} ({thread.wchan})" if thread.wchan else thread.blocked_in
        who = f"worker thread {thread.tid}"
        text = f"{who} is in {where}" if one.thread else f"waits for {who}, which is in {where}"
        whom = Whom(text, tid=thread.tid, moves=(thread.cpu_ns, thread.turns))
        for waited in waited_for(self._memory, thread.blocked_in, thread.arguments):
            if isinstance(waited, ByDescriptor):
                found = self._describe(waited.fd, waited.writes)
                return replace(whom, text=f"{text} on {found.text}", peers=_known_peers(found))
            if isinstance(waited, ByPath):
                found = self._descriptors.path(waited.path, waited.dirfd)
                return replace(whom, text=f"{text} of {found.text}", peers=_known_peers(found))
        return whom

    def _describe(self, fd: int, writes: bool | None) -> Descriptor:
        key = (fd, writes)
        if key not in self._known:
            self._known[key] = self._descriptors.describe(fd, writes=writes)
        return self._known[key]


def _of_descriptor(text: str, found: Descriptor) -> Whom:
    queued = found.unread if found.unread is not None else found.unacknowledged
    return Whom(text, _known_peers(found), queued or 0, found.silent_ns)


def _known_peers(found: Descriptor) -> tuple[Peer, ...]:
    """The processes from whose state something may be concluded."""
    return found.peers if found.certain else ()
