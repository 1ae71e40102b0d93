"""The monitor's side of the process that listens (``qtrace.monitor.listener``).

It is begun before anything else that has threads of its own (numpy has): capabilities are each
thread's, and who gives them up has to be alone.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtrace.errors import MonitorFailed
from qtrace.monitor.listener import NO_TLS, READY
from qtrace.monitor.state import HostState

START_S = 20.0


@dataclass(frozen=True)
class Address:
    """Where to listen; the files are PEM. With ``client_ca`` only who has a certificate of it is
    answered."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class Listener:
    """The process that listens. Raises MonitorFailed when it cannot.

    Attributes:
        port: where it listens.
        pid: its process.
    """

    def __init__(self, address: Address) -> None:
        files = [str(f) for f in (address.certificate, address.key, address.client_ca) if f]
        arguments = [address.host, str(address.port), *files]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qtrace.monitor.listener", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split(None, 1)
        if said[:1] != [READY]:
            self._process.wait(START_S)
            what, why = [*said, "", ""][:2]
            if what == NO_TLS:
                remedy = "openssl x509 -noout -text -in FILE shows what is in a file"
                raise MonitorFailed(why.strip(), remedy)
            where = f"{address.host}:{address.port}"
            raise MonitorFailed(f"cannot listen on {where}: {why.strip() or 'it ended'}")
        self.port, self.pid = int(said[1]), self._process.pid

    def tell(self, state: HostState) -> None:
        """Raises MonitorFailed when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{state.dump()}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise MonitorFailed(
                "the process that listens has ended", "start qtrace monitor again (systemd does)"
            ) from error

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            # Of another user: who has no right to kill it leaves it to its own end.
            with suppress(PermissionError):
                self._process.kill()
                self._process.wait()
