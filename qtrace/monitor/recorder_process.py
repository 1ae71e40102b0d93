"""The looker's side of the process that reads the probes (``qtrace.monitor.recorder``)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from qtrace.monitor import messages

END_S = 20.0


class RecorderProcess:
    """It runs from now on, until it is closed, or ends by itself (``alive``).

    Args:
        rings: by name, a ring buffer's descriptor and its size in bytes.
        layouts: of their records.
        last_ns: for how long it keeps the events of each QEMU; 0: not at all.
        take: is told its messages, in a thread of ours.
        take_record: and records, behind the letter that says of which.
    """

    def __init__(
        self,
        rings: Mapping[str, tuple[int, int]],
        layouts: Mapping[str, Any],
        last_ns: int,
        take: Callable[[dict[str, Any]], None],
        take_record: Callable[[bytes, bytes], None],
    ) -> None:
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = str(theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qtrace.monitor.recorder", str(messages.VERSION), number],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        self.alive = True
        self.pid = self._process.pid
        self._take, self._take_record = take, take_record
        self._sending = threading.Lock()
        sizes = {name: size for name, (_fd, size) in rings.items()}
        fds = [fd for fd, _size in rings.values()]
        about = {"rings": sizes, "layouts": dict(layouts), "last_ns": last_ns}
        self.send(about, fds)
        threading.Thread(target=self._read, daemon=True, name="recorder").start()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Of one that has ended ``alive`` tells."""
        with self._sending, suppress(OSError):
            messages.send(self._end, message, fds)

    def close(self) -> None:
        """End it, and with it all that it has armed."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        # Not killed: that may be what stops the host (see Closing there).
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._end.close()

    def _read(self) -> None:
        with suppress(OSError):
            while True:
                data, _fds = messages.receive(self._end)
                if not data:
                    break
                if data[:1] == b"{":
                    self._take(json.loads(data))
                else:
                    self._take_record(data[:1], data[1:])
        self.alive = False
