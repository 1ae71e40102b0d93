"""Messages with fields for systemd's journal, by its native protocol (systemd's
docs/JOURNAL_NATIVE_PROTOCOL.md)."""

from __future__ import annotations

import os
import socket

SOCKET = "/run/systemd/journal/socket"
# Of syslog(3).
ERROR, WARNING = 3, 4
# What all messages about a finding have in common: journalctl MESSAGE_ID=...
FINDING = "5b9c1f6a0f6e4c0e9a3d1d7a6c2b8e41"


def is_stderr() -> bool:
    """Whether the standard error is the journal's: who starts a service tells which it is."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(stat.st_dev), str(stat.st_ino))


def send(message: str, priority: int, fields: dict[str, str], to: str = SOCKET) -> bool:
    """Send one; False when nobody has taken it.

    Args:
        fields: by their names, which are of capital letters and ``_``.
        to: the journal's socket.
    """
    said = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "qtrace", **fields}
    datagram = b"".join(_field(name, value) for name, value in said.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        # It reads at its leisure; nobody waits for it.
        sock.setblocking(False)
        try:
            sock.sendto(datagram, to)
        except OSError:
            return False
    return True


def _field(name: str, value: str) -> bytes:
    """A value of several lines has its length before it."""
    raw = value.encode(errors="replace")
    if b"\n" not in raw:
        return b"%s=%s\n" % (name.encode(), raw)
    return b"%s\n%s%s\n" % (name.encode(), len(raw).to_bytes(8, "little"), raw)
