"""What a descriptor of another process is, and who is at its other end.

``describe(pid, fd)`` for one, ``Descriptors(pid)`` for several at one moment. Each look-up has a
time limit, nothing of the target's is opened or asked for, and what cannot be seen is said.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from qtrace.host.mounts import Mount, Mounts, absolute, servers, waiting
from qtrace.host.owners import O_RDONLY, O_WRONLY, Owners, access, fdinfo, polled
from qtrace.host.peer import Peer
from qtrace.host.sock_diag import TCP_SYN_SENT, InetSocket, Sockets, UnixSocket, sockets_of
from qtrace.machine.parts import part
from qtrace.units import show

Kind = Literal[
    "unix",
    "TCP",
    "UDP",
    "socket",
    "pipe",
    "pty",
    "file",
    "device",
    "anonymous",
    "closed",
    "unknown",
]
# All look-ups together take no longer, a step that is under way apart: ten times what they take
# where ten others want the processor.
LIMIT_S = 3.0
# So many processes are told of one end, which all that were forked may have.
TOLD = 3
# Of a TCP connection on which nothing has come for so long it is told.
SILENT_NS = 1_000_000_000
# A device that stands for something: what its fdinfo calls it.
FDINFO_NAMES = {"tun": "iff"}


@dataclass(frozen=True)
class Descriptor:
    """An open file of a process, or a path that it asks for (``fd`` is None then).

    Attributes:
        kind: ``anonymous`` is one of the kernel's own (eventfd, io_uring); ``unknown`` may not be
            seen.
        name: a path, an address, or what the kernel calls it; bytes of the target's, untrusted.
        mount: what a file lies on.
        relation: what ``peers`` are to it: ``whose other end is``, ``served by``.
        peers: the processes that somebody waits for who waits for it. Empty: see ``unseen``.
        unread: bytes that lie at the other end, on this host, and are not read; None where that is
            not known.
        unacknowledged: bytes that TCP has sent, or keeps, and that the other end has not
            acknowledged; None for other kinds.
        silent_ns: for so long nothing has come from TCP's other end; None for other kinds.
        incoming: bytes that wait here to be read; None where that is not known.
        in_flight: requests that are under way: of an io_uring, or that a FUSE server has yet to
            answer. None where that is not known.
        unseen: why the peers are not known, or more of it, in words; empty when all is.
        certain: ``peers`` are known to be these; else nothing may be concluded from them.
    """

    fd: int | None
    kind: Kind
    name: str = ""
    mount: Mount | None = None
    relation: str = ""
    peers: tuple[Peer, ...] = ()
    unread: int | None = None
    unacknowledged: int | None = None
    silent_ns: int | None = None
    incoming: int | None = None
    in_flight: int | None = None
    unseen: str = ""
    certain: bool = True

    @property
    def text(self) -> str:
        """All of it, as half a sentence: ``fd 10, unix socket nbd.sock, whose other end is process
        17333 (qemu-nbd), stopped by a signal (SIGSTOP); 28 bytes unread there``."""
        parts = [self._what]
        parts += [f"on {self.mount.text}"] if self.mount else []
        if self.peers:
            told = " and ".join(peer.text for peer in self.peers[:TOLD])
            more = len(self.peers) - TOLD
            told += f" and {more} more" if more > 0 else ""
            parts.append(f"{self.relation} {told}")
        elif self.relation:
            parts.append(self.relation)
        text = ", ".join(parts) + (f" ({self.unseen})" if self.unseen else "")
        return "; ".join([text, *self._queued])

    @property
    def _what(self) -> str:
        kinds = {"unix": "unix socket", "socket": "a socket", "pipe": "pipe", "file": "",
                 "closed": "closed", "device": "", "anonymous": "", "unknown": ""}  # fmt: skip
        words = [kinds.get(self.kind, self.kind), self.name]
        what = " ".join(word for word in words if word)
        return what if self.fd is None else f"fd {self.fd}" + (f", {what}" if what else "")

    @property
    def _queued(self) -> list[str]:
        found = []
        found += [f"{_count(self.unread, 'byte')} unread there"] if self.unread else []
        unanswered = self.unacknowledged
        found += [f"{_count(unanswered, 'byte')} not acknowledged"] if unanswered else []
        if self.silent_ns is not None and self.silent_ns >= SILENT_NS:
            found.append(f"nothing has come from there for {show(self.silent_ns, 'ns')}")
        if self.in_flight is not None and (self.in_flight or self.mount is None):
            found.append(f"{_count(self.in_flight, 'request')} in flight")
        return found


def describe(
    pid: int, fd: int, *, writes: bool | None = None, limit_s: float = LIMIT_S
) -> Descriptor:
    """What a descriptor is, now. Never raises for what is gone, or may not be seen.

    Args:
        writes: whether somebody waits to write to it (True) or to read from it (False), which
            tells the end of a pipe; None: as it was opened.
    """
    return Descriptors(pid, limit_s).describe(fd, writes=writes)


class Descriptors:
    """The descriptors of one process at one moment: what was looked up is kept."""

    def __init__(self, pid: int, limit_s: float = LIMIT_S) -> None:
        self._pid = pid
        self._deadline = time.monotonic() + limit_s
        self._owners = Owners(limit_s)
        self._mounts: Mounts | None = None
        self._sockets: dict[int, Sockets | OSError] = {}
        self._peers: dict[int, Peer] = {}

    def describe(self, fd: int, *, writes: bool | None = None, is_pipe: bool = False) -> Descriptor:
        """As the function. ``is_pipe``: what bears a path is known to be a named pipe (nothing but
        asking for it, or a thread that sleeps in pipe_read(), shows that)."""
        try:
            link = os.readlink(f"/proc/{self._pid}/fd/{fd}")
        except FileNotFoundError:
            return self._not_there(fd)
        except OSError as error:
            return Descriptor(fd, "unknown", unseen=f"it may not be seen: {error.strerror}")
        kind, inode = _numbered(link)
        if kind == "socket":
            return self._socket(fd, inode)
        if kind == "pipe" or is_pipe:
            return self._pipe(fd, link, "" if kind == "pipe" else link, writes)
        facts = fdinfo(self._pid, fd)
        if link.startswith("anon_inode:"):
            return _anonymous(fd, link, facts)
        if "tty-index" in facts:
            found = Descriptor(fd, "pty", f"/dev/pts/{facts['tty-index']}")
            return self._held(found, "whose terminal end", self._owners.of(found.name))
        if link.startswith("/dev/pts/"):
            masters = self._owners.of_device("ptmx") + self._owners.of("/dev/pts/ptmx")
            index = link.removeprefix("/dev/pts/")
            holders = [(p, f) for p, f in masters if fdinfo(p, f).get("tty-index") == index]
            return self._held(Descriptor(fd, "pty", link), "whose other end", holders)
        if link.startswith("/dev/") and not link.startswith("/dev/shm/"):
            name = next((facts[k] for k in FDINFO_NAMES.values() if k in facts), "")
            return Descriptor(fd, "device", f"{link} ({name})" if name else link)
        return self._file(fd, link, self._mounts_of().of_fd(fd))

    def path(self, path: str, dirfd: int | None = None, *, is_pipe: bool = False) -> Descriptor:
        """What a path leads to that the process gave to a system call, as its text shows."""
        whole = absolute(self._pid, path, dirfd)
        if not whole:
            return Descriptor(None, "file", path)
        mount = self._mounts_of().of_path(whole)
        if is_pipe:
            device = mount.device if mount else ""
            same = [
                (p, f)
                for p, f in self._owners.named(whole)
                if _device(p, f) == device and self._may_be_at(whole, p, f)
            ]
            peers = tuple(map(self.peer, dict.fromkeys(pid for pid, _fd in same)))
            relation = "which is open in" if peers else "whose other end nobody has open"
            unseen = "" if peers else self._owners.unseen
            return Descriptor(None, "pipe", path, None, relation, peers, unseen=unseen)
        found = self._file(None, whole, mount)
        return replace(found, name=path) if not path.startswith("/") else found

    def _may_be_at(self, whole: str, pid: int, fd: int) -> bool:
        """Whether a process may have open what lies at a path of this one. Where all see the same
        mounts the path tells; elsewhere a file may go by another, and its name is all there is."""
        try:
            spaces = {os.readlink(f"/proc/{one}/ns/mnt") for one in (pid, self._pid, "self")}
            root, link = os.readlink(f"/proc/{self._pid}/root"), os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            return True
        here = os.path.normpath(f"{root}/{whole}")
        return len(spaces) > 1 or link.removesuffix(" (deleted)") == here

    def connecting(self, fd: int, path: str) -> Descriptor:
        """A descriptor that is being connected to a unix socket: whoever listens there has not
        taken the clients that came before."""
        found = Descriptor(fd, "unix", path)
        for pid in self._namespaces():
            sockets = self._sockets_of(pid)
            one = sockets.unix_listener(path) if isinstance(sockets, Sockets) else None
            if one is not None:
                relation = f"where it waits behind {_count(one.unread, 'client')} to be accepted by"
                return self._owned(found, relation, one.inode)
        return replace(found, relation="where nobody that can be seen listens")

    @part
    def with_somebody(self) -> list[Descriptor]:
        """Of the process's unix sockets those that listen and have clients that are not accepted,
        and those that are connected."""
        own = self._unix_sockets
        return [self.describe(fd) for fd, one in own if one.waiting or one.peer]

    def is_connected_by(self, path: str) -> bool | None:
        """Whether one of the process's unix sockets is connected by this path, to whom it was given
        or by whom; None where one may be whose path does not show.

        The last part of the path decides: who made the socket may have another root, or folder.
        """
        if not isinstance(self._sockets_of(self._pid), Sockets):
            return None
        names = {self.describe(fd).name for fd, one in self._unix_sockets if one.peer}
        if os.path.basename(path) in map(os.path.basename, names):
            return True
        return None if "" in names else False

    def connected_to(self, name: str) -> list[Descriptor]:
        """Of the process's unix sockets of a name those that are connected."""
        own = self._unix_sockets
        return [self.describe(fd) for fd, one in own if one.name == name and not one.listens]

    def rings(self) -> list[Descriptor]:
        """The process's io_urings of which the kernel tells what is in flight. (Where QEMU's loops
        wait by them, what they wait for counts, too.)"""
        links = self._owners.of("anon_inode:[io_uring]")
        found = [self.describe(fd) for pid, fd in links if pid == self._pid]
        return [one for one in found if one.in_flight is not None]

    def _fds(self) -> list[int]:
        with suppress(OSError):
            return sorted(int(name) for name in os.listdir(f"/proc/{self._pid}/fd"))
        return []

    @part
    def _unix_sockets(self) -> list[tuple[int, UnixSocket]]:
        """The process's own, by descriptor."""
        found = ((fd, self._unix_socket(fd)) for fd in self._fds())
        return [(fd, one) for fd, one in found if one is not None]

    def _unix_socket(self, fd: int) -> UnixSocket | None:
        """A unix socket of the process's own network namespace."""
        with suppress(OSError):
            kind, inode = _numbered(os.readlink(f"/proc/{self._pid}/fd/{fd}"))
            sockets = self._sockets_of(self._pid) if kind == "socket" else None
            return sockets.unix.get(inode) if isinstance(sockets, Sockets) else None
        return None

    def polled(self, fd: int) -> list[int]:
        """The descriptors that an epoll descriptor waits for."""
        return sorted(polled(self._pid, fd))

    def peer(self, pid: int) -> Peer:
        """A process as it was when it was first asked for."""
        if pid not in self._peers:
            self._peers[pid] = Peer.of(pid)
        return self._peers[pid]

    # Sockets

    def _socket(self, fd: int, inode: int) -> Descriptor:
        why = ""
        for pid in self._namespaces():
            sockets = self._sockets_of(pid)
            if isinstance(sockets, OSError):
                why = why or f"sockets cannot be looked up ({sockets.strerror or sockets})"
                continue
            if inode in sockets.unix:
                return self._unix(fd, sockets.unix[inode], sockets)
            found = sockets.inet_socket(inode)
            if found is not None:
                return self._inet(fd, found, sockets)
            if sockets.absent:
                why = why or f"this kernel tells nothing of {', '.join(sockets.absent)} sockets"
        other = "it is of a network namespace that is not to be seen, or of a kind that is not told"
        return Descriptor(fd, "socket", unseen=why or other)

    def _namespaces(self) -> Iterable[int]:
        """A process of each network namespace, the target's first: a socket belongs to the one in
        which it was made, and may have been handed over."""
        yield self._pid
        yield os.getpid()
        yield from self._owners.network_namespaces

    def _sockets_of(self, pid: int) -> Sockets | OSError:
        """The sockets of a process's network namespace."""
        if pid not in self._sockets:
            self._sockets[pid] = self._new_sockets(pid)
        return self._sockets[pid]

    def _new_sockets(self, pid: int) -> Sockets | OSError:
        left = self._deadline - time.monotonic()
        if left <= 0:
            return TimeoutError("no time was left")
        try:
            return sockets_of(pid, left)
        except OSError as error:
            return error

    def _unix(self, fd: int, own: UnixSocket, sockets: Sockets) -> Descriptor:
        found = Descriptor(fd, "unix", own.name, incoming=None if own.listens else own.unread)
        if own.listens:
            owners = [o for inode in own.waiting for o in self._owners.of(f"socket:[{inode}]")]
            peers = tuple(map(self.peer, dict.fromkeys(pid for pid, _fd in owners)))
            if peers:
                return replace(found, relation="which has not accepted yet", peers=peers)
            clients = f", {_count(own.unread, 'client')} not accepted yet" if own.unread else ""
            return replace(found, relation="which listens" + clients)
        if own.peer:
            other = sockets.unix.get(own.peer)
            name = own.name or (other.name if other else "")
            found = replace(found, name=name, unread=other.unread if other else None)
            found = self._owned(found, "whose other end is", own.peer)
            return found if other else self._elsewhere(found, own.peer)
        if own.shut:
            return replace(found, relation="whose other end is closed")
        listener = sockets.listener_of(own.inode)
        if listener is None:
            return replace(found, relation="which is not connected")
        found = replace(found, name=listener.name)
        return self._owned(found, "which is not accepted yet by", listener.inode)

    def _elsewhere(self, found: Descriptor, inode: int) -> Descriptor:
        """With what its other end has not read, which is of another network namespace."""
        for peer in found.peers:
            sockets = self._sockets_of(peer.pid)
            if isinstance(sockets, Sockets) and inode in sockets.unix:
                other = sockets.unix[inode]
                return replace(found, name=found.name or other.name, unread=other.unread)
        return found

    def _inet(self, fd: int, own: InetSocket, sockets: Sockets) -> Descriptor:
        kind: Kind = "TCP" if own.protocol == "TCP" else "UDP"
        name = f"{_address(own.local)} -> {_address(own.remote)}"
        found = Descriptor(fd, kind, name)
        if own.protocol == "TCP":
            found = replace(
                found, incoming=own.unread, unacknowledged=own.unsent, silent_ns=own.silent_ns
            )
        if own.listens or not own.remote[1]:
            return Descriptor(fd, kind, _address(own.local), relation="which listens")
        here = self._end_here(own, sockets)
        if here is not None:
            other, there = here
            # Of UDP the kernel tells the memory that it takes, and of all clients.
            found = replace(found, unread=other.unread if kind == "TCP" else None)
            if other.inode:
                return self._owned(found, "whose other end is", other.inode)
            listener = there.inet_listener(own.remote)
            if listener is not None and listener.inode:
                return self._owned(found, "which is not accepted yet by", listener.inode)
            return replace(found, relation="whose other end is closed")
        if own.state == TCP_SYN_SENT:
            relation = "which nobody has answered yet"
            return replace(found, unacknowledged=None, relation=relation)
        text = "whose other end is not on this host, as far as can be seen"
        if own.retransmits:
            text += f", and was sent the same {_count(own.retransmits, 'time')} more"
        return replace(found, relation=text)

    def _end_here(self, own: InetSocket, sockets: Sockets) -> tuple[InetSocket, Sockets] | None:
        """A socket's other end, in whatever network namespace of this host it is."""
        other = sockets.other_end(own)
        if other is None and own.protocol == "UDP":
            other = sockets.udp_server_of(own)
        if other is not None:
            return other, sockets
        if own.state == TCP_SYN_SENT:
            return None
        for pid in self._owners.network_namespaces:
            there = self._sockets_of(pid)
            if isinstance(there, Sockets) and (other := there.other_end(own)) is not None:
                return other, there
        return None

    def _owned(self, found: Descriptor, relation: str, inode: int) -> Descriptor:
        """With the processes that have a socket; one's own only where nobody else has it."""
        pids = [pid for pid, _fd in self._owners.of(f"socket:[{inode}]")]
        others = [pid for pid in dict.fromkeys(pids) if pid != self._pid]
        if pids and not others:
            return replace(found, relation=f"{relation} this process itself")
        if not pids:
            unseen = self._owners.unseen or "no process has it any more"
            return replace(found, relation=f"{relation} nobody that can be seen", unseen=unseen)
        return replace(found, relation=relation, peers=tuple(map(self.peer, others)))

    # Pipes and files

    def _pipe(self, fd: int, link: str, name: str, writes: bool | None) -> Descriptor:
        facts = fdinfo(self._pid, fd)
        opened = access(facts)
        if writes is None:
            writes = opened != O_RDONLY
        unwanted, end = (O_WRONLY, "read") if writes else (O_RDONLY, "write")
        same = self._same_file(fd, link, facts) if name else self._owners.of(link)
        holders = [
            pid
            for pid, other in same
            if (pid, other) != (self._pid, fd)
            and access(fdinfo(pid, other)) not in (unwanted, None)
        ]
        found = Descriptor(fd, "pipe", name)
        others = [pid for pid in dict.fromkeys(holders) if pid != self._pid]
        if others:
            peers = tuple(map(self.peer, others))
            return replace(found, relation=f"whose {end} end is held by", peers=peers)
        if holders or opened not in (O_RDONLY, O_WRONLY):
            relation = f"whose {end} end nobody but this process itself has open"
        else:
            relation = f"whose {end} end nobody has open"
        return replace(found, relation=relation, unseen=self._owners.unseen)

    def _same_file(self, fd: int, link: str, facts: dict[str, str]) -> list[tuple[int, int]]:
        """Those that have the same file open, by its inode and device: a path is another one in
        another mount namespace or chroot. (fdinfo has ``ino`` since Linux 5.14.)"""
        device = _device(self._pid, fd)
        return [
            (pid, other)
            for pid, other in self._owners.named(link)
            if fdinfo(pid, other).get("ino") == facts.get("ino") and _device(pid, other) == device
        ]

    def _held(self, found: Descriptor, end: str, holders: Iterable[tuple[int, int]]) -> Descriptor:
        """With the other processes that have an end of it open."""
        pids = dict.fromkeys(pid for pid, _fd in holders if pid != self._pid)
        if pids:
            peers = tuple(map(self.peer, pids))
            return replace(found, relation=f"{end} is held by", peers=peers)
        return replace(found, relation=f"{end} nobody has open", unseen=self._owners.unseen)

    def _file(self, fd: int | None, link: str, mount: Mount | None) -> Descriptor:
        found = Descriptor(fd, "file", link, mount)
        if mount is None or not mount.is_fuse:
            return found
        pids, certain = servers(mount, self._owners)
        found = replace(found, in_flight=waiting(mount))
        if pids:
            relation = "served by" if certain else "perhaps served by"
            peers = tuple(map(self.peer, pids))
            return replace(found, relation=relation, peers=peers, certain=certain)
        relation = "served by nobody that can be seen"
        return replace(found, relation=relation, unseen=self._owners.unseen)

    def _mounts_of(self) -> Mounts:
        if self._mounts is None:
            self._mounts = Mounts(self._pid)
        return self._mounts

    def _not_there(self, fd: int) -> Descriptor:
        if os.path.lexists(f"/proc/{self._pid}"):
            return Descriptor(fd, "closed")
        try:
            # Nothing is sent.
            os.kill(self._pid, 0)
        except PermissionError:
            return Descriptor(fd, "unknown", unseen="/proc hides its process (hidepid)")
        except OSError:
            pass
        return Descriptor(fd, "closed", unseen="the process has ended")


def _anonymous(fd: int, link: str, facts: dict[str, str]) -> Descriptor:
    name = link.removeprefix("anon_inode:").strip("[]")
    if name != "io_uring":
        return Descriptor(fd, "anonymous", name)
    in_flight = None
    with suppress(KeyError, ValueError):
        # io_uring/fdinfo.c: what the kernel has taken from the one ring, and put into the other.
        in_flight = (int(facts["CachedSqHead"]) - int(facts["CqTail"])) % (1 << 32)
    return Descriptor(fd, "anonymous", name, in_flight=in_flight)


def _device(pid: int, fd: int) -> str:
    mount = Mounts(pid).of_fd(fd)
    return mount.device if mount else ""


def _numbered(link: str) -> tuple[str, int]:
    match = re.fullmatch(r"(socket|pipe):\[(\d+)\]", link)
    return (match[1], int(match[2])) if match else ("", 0)


def _address(end: tuple[str, int]) -> str:
    host, port = end
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
