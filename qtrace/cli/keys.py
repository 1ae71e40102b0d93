"""Keys as they are pressed, one by one, without waiting for a whole line."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator
from types import TracebackType
from typing import Self

# What terminals send for these (ECMA-48, and xterm's application mode).
SENT = {
    "\x1b[C": "right", "\x1bOC": "right", "\x1b[D": "left", "\x1bOD": "left",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home",
    "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end",
}  # fmt: skip
KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|[\s\S]")


class Keys:
    """A context manager: the terminal of stdin gives keys at once, and echoes none. Ctrl-C stays
    what it is. Without a terminal there are none."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[object] = []

    def __enter__(self) -> Self:
        if self._fd >= 0:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def pressed(self, seconds: float) -> Iterator[str]:
        """The keys that are there, or the first ones that come within so long."""
        if not select.select([self._fd] if self._fd >= 0 else [], [], [], seconds)[0]:
            return
        text = os.read(self._fd, 1024).decode(errors="replace")
        yield from (SENT.get(key, key) for key in KEY.findall(text))
