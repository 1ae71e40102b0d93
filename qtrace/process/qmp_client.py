"""A synchronous QMP client: PyPI's ``qemu.qmp`` on an event loop of its own.

The loop turns only while a call is under way, so that no thread is needed: what QEMU sends
in between waits in the socket. Made by hand: `qemu.qmp.legacy`, kept for old scripts of QEMU's own
tree, has no limit for a connection, and goes on waiting for an event when QEMU has gone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import NegotiationError

from qtrace.errors import QmpFailed

T = TypeVar("T")
Message = dict[str, Any]

CLOSE_TIMEOUT_S = 1.0
# So often is one made that an event comes into.
CONNECTIONS = 5
REMEDY = "name the UNIX socket of QEMU's own -qmp option"

# qemu.qmp logs each failure that it raises as well; the user sees ours, once.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class CommandRefused(QmpFailed):
    """QEMU answered a command with an error.

    Attributes:
        error_class: QMP's error class, e.g. ``CommandNotFound``.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(
            f"QEMU refused {command}: {description}",
            "see the command's documentation in QEMU's QMP reference",
        )
        self.error_class = error_class


class NotAnswered(QmpFailed):
    """Nothing came in time: QEMU hangs, or another client holds the socket."""


class QmpClient:
    """One connection to a QMP socket, made when the context is entered.

    Args:
        socket_path: the UNIX socket of QEMU's ``-qmp``.
        timeout_s: the longest wait for the connection, and for the reply to a command.
    """

    def __init__(self, socket_path: Path, timeout_s: float = 5.0) -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self._runner = asyncio.Runner()
        self._qmp = QMPClient()

    def __enter__(self) -> Self:
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def version(self) -> str:
        """QEMU's version with its package, e.g. ``7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)``."""
        greeting = self._qmp.greeting
        if greeting is None:
            return ""
        known: Message = dict(greeting.QMP.version)
        number = ".".join(str(known["qemu"][part]) for part in ("major", "minor", "micro"))
        package = str(known.get("package", "")).strip()
        if not package:
            return number
        return f"{number} {package}" if package.startswith("(") else f"{number} ({package})"

    def command(self, name: str, /, **arguments: Any) -> Any:
        """Execute one command; its ``return`` value (a dict for most commands).

        Arguments with hyphens are passed as ``**{"job-id": ...}``.

        Raises:
            CommandRefused: QEMU answered with an error.
            NotAnswered: no answer in time.
            QmpFailed: the connection ended.
        """
        try:
            return self._run(self._qmp.execute(name, arguments or None), self.timeout_s, name)
        except ExecuteError as error:
            raise CommandRefused(name, error.error_class, str(error)) from error

    def wait_event(
        self,
        name: str,
        predicate: Callable[[Message], bool] = lambda event: True,
        timeout: float | None = None,
    ) -> Message:
        """The next event of that name for which ``predicate(event)`` holds.

        Events come in order, from the moment of connecting; those before the one returned
        are dropped. ``timeout`` is in seconds, the client's own when None.

        Raises:
            QmpFailed: no such event in time, or the connection ended.
        """

        async def wanted() -> Message:
            while True:
                event = await self._next_event()
                if event["event"] == name and predicate(event):
                    return event

        limit = self.timeout_s if timeout is None else timeout
        return self._run(wanted(), limit, f"the event {name}")

    def next_event(self, timeout: float | None = None) -> Message:
        """The next event of any name; see ``wait_event``."""
        limit = self.timeout_s if timeout is None else timeout
        return self._run(self._next_event(), limit, "an event")

    def close(self) -> None:
        """End the connection; does nothing when there is none (any more)."""
        try:
            if self._qmp.runstate != Runstate.IDLE:
                # Why a connection ended was told by the call that met it.
                with suppress(Exception):
                    self._runner.run(asyncio.wait_for(self._qmp.disconnect(), CLOSE_TIMEOUT_S))
        finally:
            self._runner.close()

    def _connect(self) -> None:
        path = self.socket_path
        deadline = time.monotonic() + self.timeout_s
        try:
            for left in reversed(range(CONNECTIONS)):
                try:
                    return self._connect_once(deadline)
                except ConnectError as error:
                    # An event may come before the reply that ends the negotiation: qemu.qmp takes
                    # it for one.
                    if not left or not isinstance(error.exc, NegotiationError):
                        raise
        except (TimeoutError, BlockingIOError) as error:
            # QEMU serves one client per socket; the next ones wait in the listen queue
            # (no greeting), and once that is full connect() itself says EAGAIN.
            raise NotAnswered(
                f"{path} does not answer: another client holds it?",
                "give QEMU a second -qmp socket, or close the other client",
            ) from error
        except ConnectError as error:
            raise QmpFailed(f"{path} is no QMP socket: {_reason(error)}", REMEDY) from error
        except OSError as error:
            if path.exists() and not path.is_socket():
                raise QmpFailed(f"{path} is not a socket", REMEDY) from error
            denied = isinstance(error, PermissionError)
            raise QmpFailed(
                f"{path} cannot be connected: {_reason(error)}",
                "run qtrace as root, or as the user QEMU runs as" if denied else REMEDY,
            ) from error

    def _connect_once(self, deadline: float) -> None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(max(0.0, deadline - time.monotonic()))
            connection.connect(str(self.socket_path))
            left = max(0.0, deadline - time.monotonic())
            self._runner.run(asyncio.wait_for(self._qmp.connect(connection), left))
        finally:
            if self._qmp.runstate == Runstate.IDLE:
                connection.close()

    async def _next_event(self) -> Message:
        """The next event; EOFError once QEMU has gone and no event is left."""
        events = self._qmp.events
        if events.empty():
            coming = asyncio.ensure_future(events.get())
            gone = asyncio.ensure_future(self._disconnected())
            try:
                await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    return dict(coming.result())
            finally:
                coming.cancel()
                gone.cancel()
            if events.empty():
                raise EOFError
        return dict(await events.get())

    async def _disconnected(self) -> None:
        # Look before waiting: only changes wake, and one may have just been missed.
        while self._qmp.runstate == Runstate.RUNNING:
            await self._qmp.runstate_changed()

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str) -> T:
        with self._as_qmp_failed(what, timeout_s):
            return self._runner.run(asyncio.wait_for(work, timeout_s))

    @contextmanager
    def _as_qmp_failed(self, what: str, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except ExecuteError:
            raise
        except TimeoutError as error:
            raise NotAnswered(
                f"{self.socket_path}: {what} did not come within {timeout_s:g} s",
                "QEMU's main loop may be blocked: qtrace inspect shows by whom",
            ) from error
        except (QMPError, EOFError, OSError) as error:
            raise QmpFailed(
                f"{self.socket_path}: the connection ended while waiting for {what}",
                "see whether QEMU still runs: qtrace ps",
            ) from error


def thread_roles(client: QmpClient) -> dict[int, tuple[Literal["vcpu", "iothread"], str]]:
    """Host thread id to role and name, as QEMU itself tells: vCPU threads and IOThreads.

    A vCPU thread is named after its vCPUs (``CPU 0``; ``CPU 0,1`` where one TCG thread runs
    several), an IOThread by its id. Programs without vCPUs or IOThreads (a storage daemon)
    lack the commands; their part stays empty.
    """
    roles: dict[int, tuple[Literal["vcpu", "iothread"], str]] = {}
    for cpu in _query(client, "query-cpus-fast"):
        tid = cpu["thread-id"]
        before = roles.get(tid)
        name = f"{before[1]},{cpu['cpu-index']}" if before else f"CPU {cpu['cpu-index']}"
        roles[tid] = ("vcpu", name)
    for iothread in _query(client, "query-iothreads"):
        roles[iothread["thread-id"]] = ("iothread", iothread["id"])
    return roles


def _query(client: QmpClient, command: str) -> list[Message]:
    try:
        answer: list[Message] = client.command(command)
    except CommandRefused as refused:
        if refused.error_class == "CommandNotFound":
            return []
        raise
    return answer


def _reason(error: Exception) -> str:
    """The innermost cause in a few words."""
    if isinstance(error, ConnectError):
        error = error.exc
    if isinstance(error, EOFError):
        return "it closed the connection"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it does not greet as QMP does"
