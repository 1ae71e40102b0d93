"""A process of the test's own that holds something, and waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qtrace.host.peer import Peer
from tests.live.support.ptraced import until

# Everything that it has open is closed with it.
BEGINNING = "import os, socket, sys, signal\n"
END = "\nprint('ready', flush=True)\nsignal.pause()\n"


@contextmanager
def holding(
    code: str,
    *,
    within: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    folder: Path | None = None,
) -> Iterator[int]:
    """The pid of a Python that has run ``code`` and then sleeps.

    Args:
        within: a command that it is started by (``unshare``).
    """
    process = subprocess.Popen(
        [*within, sys.executable, "-S", "-E", "-c", BEGINNING + code + END],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=pass_fds, cwd=folder,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Peer.of(pid).held, "its stop")
