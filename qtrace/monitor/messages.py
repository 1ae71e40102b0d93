"""What the looker and the recorder send each other: messages over a SOCK_SEQPACKET.

A message is JSON, or one record of a ring buffer behind the letter that says of which.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

# The recorder's arguments have the looker's: a qtrace that was upgraded under a running one is not
# understood by guess.
VERSION = 3
HIT, LAST_HIT, LAST_STEP = b"H", b"E", b"S"
LONGEST = 1 << 17
# SCM_MAX_FD of linux/net/scm.h.
MOST_FDS = 253


def send(end: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Raises OSError when there is nobody to take it."""
    data = json.dumps(message).encode()
    if fds:
        socket.send_fds(end, [data], list(fds))
    else:
        end.send(data)


def receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """The next one, as it is, with the descriptors that came with it; empty at the end."""
    data, fds, _flags, _from = socket.recv_fds(end, LONGEST, MOST_FDS)
    return data, fds
