"""A job that computes on QEMU's main thread: LUKS tries how many rounds it can do."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from qtrace.lab.guest import Guest

KEY = "key"
ARGUMENTS = ("-object", f"secret,id={KEY},data=123456")
IMAGE_BYTES = 1 << 20


class LuksJob:
    """Begun at once, by a monitor of its own; nobody waits for its answers.

    QEMU gives up ("Unable to get accurate CPU usage") where the kernel counts processor time too
    coarsely for its first rounds: ``go_on`` begins it again then.

    Args:
        guest: started with ``ARGUMENTS``.
        rounds_ms: how long it is to try.
    """

    def __init__(self, guest: Guest, qmp: socket.socket, job: str, rounds_ms: int) -> None:
        image: Path = guest.folder / "luks.img"
        image.write_bytes(bytes(16 * IMAGE_BYTES))
        guest.qmp.command(
            "blockdev-add", **{"driver": "file", "filename": str(image), "node-name": "luks"}
        )
        options = {"driver": "luks", "file": "luks", "size": IMAGE_BYTES, "key-secret": KEY,
                   "iter-time": rounds_ms}  # fmt: skip
        self._create = ("blockdev-create", {"job-id": job, "options": options})
        self._dismiss = ("job-dismiss", {"id": job})
        self._qmp = qmp
        qmp.connect(str(guest.second_qmp_socket))
        qmp.sendall(b'{"execute": "qmp_capabilities"}')
        self._send(*self._create)

    def go_on(self) -> None:
        """To be called again and again until it computes."""
        try:
            arrived = self._qmp.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if b'"concluded"' in arrived:
            self._send(*self._dismiss)
            self._send(*self._create)

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
