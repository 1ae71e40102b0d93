"""The kernel's sockets, as netlink's sock_diag tells: who is connected to whom, what is unread.

Made by hand: pyroute2, which has it too, takes 0.37 s of processor time to be imported, and all of
this 4 ms. Formats: linux/sock_diag.h, unix_diag.h, inet_diag.h.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, DUMP = 0x1, 0x300
HEADER = struct.Struct("<IHHII")
ATTRIBUTE = struct.Struct("<HH")
# struct unix_diag_req, unix_diag_msg: the show bits are name, peer, waiting clients, queues.
UNIX_REQUEST, UNIX_MESSAGE = struct.Struct("<BBHIIIII"), struct.Struct("<BBBBI")
SHOW = 0x01 | 0x04 | 0x08 | 0x10
NAME, PEER, ICONS, QUEUES, SHUTDOWN = 0, 2, 3, 4, 6
# struct inet_diag_req_v2; inet_diag_msg up to the ports, and from the queues on.
INET_REQUEST = struct.Struct("<BBBBI48x")
INET_STATE, INET_PORTS, INET_QUEUES = struct.Struct("<BBBB"), struct.Struct(">HH"), 56
INET_MESSAGE_BYTES = 72
# linux/inet_diag.h INET_DIAG_INFO: struct tcp_info of linux/tcp.h, of which this is
# tcpi_last_data_recv, in milliseconds.
TCP_INFO, LAST_DATA = 2, struct.Struct("<52xI")
# An address that stands for all of the host's own.
ANY = ("0.0.0.0", "::")
TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_SENT = 1, 10, 2
CLONE_NEWNET = 0x40000000
NLM_F_DUMP_INTR = 0x10
TRIES = 3
# A dump that is longer in coming is given up.
LIMIT_S = 0.5
# No socket is left out, whatever its state.
ALL_STATES = 0xFFFFFFFF
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket. ``peer`` is the inode of the other end, 0 when there is none, or when it has
    not been accepted yet; ``waiting`` are the inodes of clients that a listening one has not
    accepted. ``unread`` bytes wait in it for its own process to read (of a listening one they are
    clients)."""

    inode: int
    kind: int
    listens: bool
    name: str
    peer: int
    unread: int
    shut: bool
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InetSocket:
    """A TCP or UDP socket. ``unread`` bytes wait in it, ``unsent`` are those that the other end has
    not acknowledged; ``inode`` is 0 where no process has it (yet, or any more); ``silent_ns``: for
    so long no data has come from the other end, None where that is not told."""

    inode: int
    protocol: str
    state: int
    local: tuple[str, int]
    remote: tuple[str, int]
    unread: int
    unsent: int
    retransmits: int
    silent_ns: int | None = None

    @property
    def listens(self) -> bool:
        return self.protocol == "TCP" and self.state == TCP_LISTEN


@dataclass(frozen=True)
class Sockets:
    """All sockets of one network namespace."""

    unix: dict[int, UnixSocket]
    inet: tuple[InetSocket, ...]
    # Kinds that this kernel does not tell of (built without unix_diag, tcp_diag ...).
    absent: tuple[str, ...] = ()

    def listener_of(self, inode: int) -> UnixSocket | None:
        """Who has yet to accept a unix socket."""
        return next((one for one in self.unix.values() if inode in one.waiting), None)

    def unix_listener(self, path: str) -> UnixSocket | None:
        """Who listens at a path: as it is written, else the only one that may be meant by it (a
        path may have been given from a folder on)."""
        listening = [one for one in self.unix.values() if one.listens and one.name]
        exact = [one for one in listening if one.name == path]
        alike = [one for one in listening if f"/{path}".endswith(f"/{one.name.lstrip('./')}")]
        return exact[0] if exact else alike[0] if len(alike) == 1 else None

    def inet_socket(self, inode: int) -> InetSocket | None:
        return next((one for one in self.inet if one.inode == inode), None)

    def other_end(self, one: InetSocket) -> InetSocket | None:
        ends = (one.protocol, one.remote, one.local)
        return next((o for o in self.inet if (o.protocol, o.local, o.remote) == ends), None)

    def udp_server_of(self, one: InetSocket) -> InetSocket | None:
        """Who takes what a UDP socket of this namespace sends: a server's is connected to none of
        its clients. One that takes what is sent to any address means this host's own, such as a
        loopback's."""
        address, port = one.remote
        own = address == one.local[0] or ipaddress.ip_address(address).is_loopback
        taking = [o for o in self.inet if (o.protocol, o.local[1], o.remote[1]) == ("UDP", port, 0)]
        exact = [o for o in taking if o.local[0] == address]
        return next(iter([*exact, *(o for o in taking if own and o.local[0] in ANY)]), None)

    def inet_listener(self, address: tuple[str, int]) -> InetSocket | None:
        """Who listens at an address, on it alone or on all."""
        ports = [one for one in self.inet if one.listens and one.local[1] == address[1]]
        exact = [one for one in ports if one.local[0] == address[0]]
        return next(iter([*exact, *(o for o in ports if o.local[0] in ANY)]), None)


def sockets_of(pid: int, limit_s: float = LIMIT_S) -> Sockets:
    """The sockets of a process's network namespace, which takes CAP_SYS_ADMIN where it is another
    than one's own.

    Raises OSError: the kernel refuses, or does not answer in time.
    """
    absent: list[str] = []
    deadline = time.monotonic() + limit_s
    with closing(_netlink(pid)) as netlink:

        def all_of(name: str, request: bytes, make: Callable[[bytes], Made]) -> list[Made]:
            try:
                return _dump(netlink, request, deadline, make)
            except FileNotFoundError:
                absent.append(name)
                return []

        every = (0, 0, ALL_STATES, 0, SHOW, ALL_STATES, ALL_STATES)
        request = UNIX_REQUEST.pack(socket.AF_UNIX, *every)
        unix = {one.inode: one for one in all_of("unix", request, _unix_socket)}
        inet: list[InetSocket] = []
        for name, number in (("TCP", socket.IPPROTO_TCP), ("UDP", socket.IPPROTO_UDP)):
            for family in (socket.AF_INET, socket.AF_INET6):
                request = INET_REQUEST.pack(family, number, 1 << TCP_INFO - 1, 0, ALL_STATES)
                inet += all_of(name, request, partial(_inet_socket, name))
    return Sockets(unix, tuple(inet), tuple(dict.fromkeys(absent)))


def _netlink(pid: int) -> socket.socket:
    """A netlink socket in a process's network namespace: it stays in the one where it was made."""
    if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        return _socket()
    made: list[socket.socket | OSError] = []

    def make() -> None:
        # A thread has a network namespace of its own, and this one ends here.
        try:
            with open(f"/proc/{pid}/ns/net", "rb") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            made.append(_socket())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _socket() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)


def _dump(
    netlink: socket.socket, request: bytes, deadline: float, make: Callable[[bytes], Made]
) -> list[Made]:
    """All answers to a request. Raises FileNotFoundError: the kernel knows no such sockets."""
    found: list[Made] = []
    for _ in range(TRIES):
        length = HEADER.size + len(request)
        netlink.send(HEADER.pack(length, SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, 1, 0) + request)
        found, interrupted = [], False
        for flags, message in _messages(netlink, deadline):
            interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
            found.append(make(message))
        if not interrupted:
            break
    return found


def _messages(netlink: socket.socket, deadline: float) -> Iterator[tuple[int, bytes]]:
    """The flags and contents of the answer's messages, up to its end."""
    while True:
        netlink.settimeout(max(deadline - time.monotonic(), 1e-3))
        raw, at = netlink.recv(1 << 18), 0
        while at + HEADER.size <= len(raw):
            length, kind, flags, _sequence, _port = HEADER.unpack_from(raw, at)
            message = raw[at + HEADER.size : at + length]
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("<i", message)[0]
                raise OSError(code or errno.EIO, os.strerror(code or errno.EIO))
            yield flags, message
            at += (max(length, HEADER.size) + 3) & ~3


def _unix_socket(message: bytes) -> UnixSocket:
    _family, kind, state, _pad, inode = UNIX_MESSAGE.unpack_from(message)
    facts = dict(_attributes(message[UNIX_MESSAGE.size + 8 :]))
    waiting = facts.get(ICONS, b"")
    return UnixSocket(
        inode,
        kind,
        listens=state == TCP_LISTEN,
        name=_unix_name(facts.get(NAME, b"")),
        peer=struct.unpack("<I", facts[PEER])[0] if PEER in facts else 0,
        unread=struct.unpack_from("<I", facts[QUEUES])[0] if QUEUES in facts else 0,
        shut=facts.get(SHUTDOWN, b"\0")[0] == 3,
        waiting=struct.unpack(f"<{len(waiting) // 4}I", waiting),
    )


def _unix_name(raw: bytes) -> str:
    """A path, or an abstract name as ``@name``; empty for a socket that is not bound."""
    text = raw.decode("utf-8", "surrogateescape")
    return "@" + text[1:] if text.startswith("\0") else text.rstrip("\0")


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(raw):
        length, kind = ATTRIBUTE.unpack_from(raw, at)
        if length < ATTRIBUTE.size:
            break
        yield kind, raw[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _inet_socket(protocol: str, message: bytes) -> InetSocket:
    family, state, _timer, retransmits = INET_STATE.unpack_from(message)
    ports = INET_PORTS.unpack_from(message, 4)
    size = 4 if family == socket.AF_INET else 16
    ends = [socket.inet_ntop(family, message[at : at + size]) for at in (8, 24)]
    # A socket of both families shows its partner of the older one so.
    local, remote = (end.removeprefix("::ffff:") if "." in end else end for end in ends)
    unread, unsent, _uid, inode = struct.unpack_from("<4I", message, INET_QUEUES)
    info = dict(_attributes(message[INET_MESSAGE_BYTES:])).get(TCP_INFO, b"")
    known = state == TCP_ESTABLISHED and len(info) >= LAST_DATA.size
    silent_ns = LAST_DATA.unpack_from(info)[0] * 1_000_000 if known else None
    pair = ((local, ports[0]), (remote, ports[1]))
    return InetSocket(inode, protocol, state, *pair, unread, unsent, retransmits, silent_ns)
