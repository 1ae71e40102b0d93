"""A client that gives its QEMU no rest: snapshots back to back, ``query-jobs`` without a pause.

By a bare socket: what a client of asyncio asks in a second is a tenth of it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

BATCH = 100
SAVE = {"tag": "qtrace", "vmstate": "nosuch", "devices": ["nosuch"]}


class Spinning:
    """One QMP connection; events are passed over."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
        while True:
            message = json.loads(self._lines.readline())
            if "event" not in message:
                return message["return"]

    def ask(self, count: int) -> None:
        """So many ``query-jobs``, many at a time: QEMU takes them off the socket one by one."""
        query = json.dumps({"execute": "query-jobs"}).encode()
        for begin in range(0, count, BATCH):
            batch = min(BATCH, count - begin)
            self._socket.sendall(query * batch)
            for _ in range(batch):
                assert json.loads(self._lines.readline()) == {"return": []}

    def save(self, job: str) -> None:
        """One ``snapshot-save``, asked for until it is over; it fails at its first check."""
        self.command("snapshot-save", **{"job-id": job, **SAVE})
        status = ""
        while status != "concluded":
            (status,) = (j["status"] for j in self.command("query-jobs") if j["id"] == job)
        self.command("job-dismiss", id=job)


def spin(path: Path, saves: int, queries: int = 0) -> None:
    """Let a process of its own take so many snapshots, and ask so often before them."""
    command = [
        sys.executable,
        "-m",
        "tests.live.support.spinning",
        str(path),
        str(saves),
        str(queries),
    ]
    subprocess.run(command, check=True)


def main(path: str, saves: int, queries: int) -> None:
    client = Spinning(path)
    client.ask(queries)
    for number in range(saves):
        client.save(f"save{number}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
