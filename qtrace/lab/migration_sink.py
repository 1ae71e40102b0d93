"""Where a guest's migrations go that nobody is to receive: a socket that takes all that comes.

No shell is needed for it, as for ``exec:cat>/dev/null``: some QEMUs run in a root that has none.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PIECE = 1 << 20


class MigrationSink:
    """Listens in a folder as long as the context lasts; the folder is QEMU's working directory.

    Attributes:
        takes_all: the ``uri`` of a migration that completes.
        breaks_off: of one that fails: the connection is closed after the first bytes.
    """

    takes_all, breaks_off = "unix:sink", "unix:broken-sink"

    def __init__(self, folder: Path) -> None:
        self._servers = {True: _listen(folder / "sink"), False: _listen(folder / "broken-sink")}
        self._threads = [
            threading.Thread(target=self._serve, args=(whole,), daemon=True)
            for whole in self._servers
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def _serve(self, whole: bool) -> None:
        """One migration after the other, until the socket is shut down."""
        buffer = bytearray(PIECE)
        with suppress(OSError):
            while True:
                connection = self._servers[whole].accept()[0]
                with connection, suppress(OSError):
                    while connection.recv_into(buffer) and whole:
                        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            # Wakes who waits in accept().
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()


def _listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(8)
    return server
