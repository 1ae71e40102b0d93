"""A command in a real pty."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from typing import Literal

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(
    columns: int,
    command: list[str],
    *,
    of: Literal["stdout", "stderr"] = "stdout",
    until: str = "",
) -> tuple[int, list[str]]:
    """Exit status, and the lines that a terminal of this width was given.

    Args:
        of: the stream that is the terminal's; the other one is nobody's.
        until: an expression; once a line that begins so was shown the command gets a SIGINT.
    """
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, of: terminal}
    process = subprocess.Popen(
        command, stdin=terminal, env=environment | {"TERM": "xterm"}, start_new_session=True,
        **streams,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(control, 1 << 16):
            shown += data
            if until and any(re.match(until, line) for line in _lines(shown)):
                process.send_signal(signal.SIGINT)
                until = ""
    except OSError:
        # The other side is closed.
        pass
    finally:
        os.close(control)
    status = process.wait()
    return status, _lines(shown)


def _lines(shown: bytes) -> list[str]:
    text = ESCAPE.sub("", shown.decode(errors="replace"))
    return [line.rstrip() for line in re.split(r"[\r\n]+", text)]
