"""What an autopsy may wait for: that looks show a hang, or that QMP does not answer."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from qtrace.errors import HasEnded, QmpFailed
from qtrace.host.descriptors import Descriptors, describe
from qtrace.host.unanswered import NoAnswer, ask
from qtrace.inspection.inspector import Inspector
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.process.process import Process, unless_it_ends
from qtrace.process.qmp_client import NotAnswered, QmpClient
from qtrace.qemu.aio.findings import COMPUTES

EVERY_S = 1.0
CONNECT_S = 1.0
QUESTION = "query-status"


def until_stuck(process: Process, for_s: float) -> str:
    """Look again and again until something has been stuck for so long, or the kernel has let
    nobody look for so long; in words.

    Raises:
        QtraceError: it cannot be looked at, or has ended meanwhile.
    """
    since: float | None = None
    try:
        inspector = ask(lambda: Inspector(Looker(LiveQemu(process))), for_s)
        while True:
            began = time.monotonic()
            answer = ask(lambda: inspector.ask().answer, for_s)
            findings = [f for f in answer.findings if f.proof and f.kind != COMPUTES]
            if not findings:
                since = None
            elif since is None:
                since = began
            elif time.monotonic() - since >= for_s:
                return f"{findings[0].kind} for {time.monotonic() - since:.0f} s"
            time.sleep(max(0.0, began + EVERY_S - time.monotonic()))
    except NoAnswer as error:
        return error.message


def until_silent(process: Process, path: Path, for_s: float) -> str:
    """Ask QMP again and again until it has not answered for so long; in words.

    Args:
        path: of a QMP socket of that process that nobody else uses.

    Raises:
        HasEnded: the process, meanwhile.
        QmpFailed: its silence would show nothing: it is no QMP socket, another process's, or
            serves another client.
    """
    with unless_it_ends(process.pid):
        _check_served(process.pid, path)
        try:
            with QmpClient(path, timeout_s=for_s) as qmp:
                while True:
                    qmp.command(QUESTION)
                    time.sleep(EVERY_S)
        except NotAnswered:
            if not os.path.lexists(process.exe):
                raise HasEnded(process.pid) from None
            return f"QMP at {path} has not answered for {for_s:g} s"


def _check_served(pid: int, path: Path) -> None:
    """Raises QmpFailed where another process listens there, or serves another client."""
    # Whatever else is wrong with the socket is told by who asks there.
    with socket.socket(socket.AF_UNIX) as own, suppress(OSError):
        own.settimeout(CONNECT_S)
        own.connect(str(path))
        end = describe(os.getpid(), own.fileno())
        if end.peers and pid not in {peer.pid for peer in end.peers}:
            raise QmpFailed(
                f"{path} is not process {pid}'s, but that of {end.peers[0].text}",
                "name the UNIX socket of that QEMU's own -qmp option",
            )
        for one in Descriptors(pid).connected_to(end.name):
            if client := next((peer for peer in one.peers if peer.pid != os.getpid()), None):
                raise QmpFailed(
                    f"{path} serves {client.text}, and answers nobody else meanwhile",
                    "give QEMU a second -qmp socket, or use --when-stuck, which needs none",
                )
