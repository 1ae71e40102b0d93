"""A command on a real terminal, by tmux: what stands on it, and keys."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.limits import TIMEOUT_S

# What the command has left behind stays to be seen, and how it ended. Ctrl-C is for it alone.
TOLD = """trap : INT; "$@"; printf '\\nended with %s\\n' $?; exec sleep infinity"""


class Tmux:
    """A server of its own with one terminal, in which the command runs.

    Args:
        socket: of the server.
    """

    def __init__(self, socket: Path, command: list[str], width: int = 80, height: int = 24) -> None:
        self._socket = socket
        environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR")}
        self._ask("new-session", "-d", "-x", str(width), "-y", str(height),
                  "sh", "-c", TOLD, "sh", *command, environment=environment)  # fmt: skip

    def __enter__(self) -> Tmux:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ask("kill-server")

    def lines(self) -> list[str]:
        """What stands on it now."""
        return self._ask("capture-pane", "-p").splitlines()

    def until(self, condition: Callable[[list[str]], object], what: str) -> list[str]:
        """What stands on it once that is so."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(lines := self.lines()):
            assert time.monotonic() < deadline, f"{what} does not come:\n" + "\n".join(lines)
            time.sleep(0.02)
        return lines

    def shows(self, text: str) -> list[str]:
        return self.until(lambda lines: text in "\n".join(lines), repr(text))

    def press(self, *keys: str) -> None:
        """As tmux calls them: ``n``, ``Space``, ``Right``, ``C-c``."""
        self._ask("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._ask("resize-window", "-x", str(width), "-y", str(height))

    @property
    def is_whole_screen(self) -> bool:
        """It shows the other screen, which programs take for as long as they last."""
        return self._ask("display-message", "-p", "#{alternate_on}").strip() == "1"

    @property
    def status(self) -> int | None:
        """The command's exit status, None while it runs."""
        told = re.findall(r"^ended with (\d+)$", "\n".join(self.lines()), re.MULTILINE)
        return int(told[-1]) if told else None

    def _ask(self, *words: str, environment: dict[str, str] | None = None) -> str:
        run = subprocess.run(
            ["tmux", "-f", "/dev/null", "-S", str(self._socket), *words],
            env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
        return run.stdout
