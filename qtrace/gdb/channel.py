"""What the script inside gdb tells qtrace, message by message, and its orders before."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST_MESSAGE = 1 << 17
BUFFER = 16 << 20
SO_SNDBUFFORCE = 32  # asm-generic/socket.h; not in Python's socket module


@dataclass(frozen=True, slots=True)
class Message:
    """What the script inside gdb tells: ``facts["kind"]`` and more, and raw bytes."""

    facts: dict[str, Any]
    raw: bytes


class Channel:
    """Our end of a socket to the script; qtrace/gdb/inside/stops.py has the other."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Readable when there are messages."""
        return self._socket.fileno()

    def order(self, config: Mapping[str, Any]) -> None:
        """What the script is to do. Said once, before all."""
        self._socket.send(json.dumps(config).encode())

    def take(self) -> list[Message]:
        """All that have come, without waiting."""
        messages = []
        while True:
            try:
                data = self._socket.recv(LARGEST_MESSAGE, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                break
            facts, _, raw = data.partition(b"\n")
            messages.append(Message(json.loads(facts), raw))
        return messages

    def close(self) -> None:
        self._socket.close()


def open_channel() -> tuple[Channel, socket.socket]:
    """Our end, and the one that gdb inherits, with room for some hundred messages."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        theirs.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    except PermissionError:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return Channel(ours), theirs
