"""The command that is run for each finding (``--on-finding``), by a process that was begun before
the monitor gave its rights up: it is the user's, and may do what the user may.

    python -m qtrace.monitor.commands COMMAND < findings
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

END_S = 5.0


class Commands:
    """Runs it. Those that go on when this ends go on."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qtrace.monitor.commands", command],
            stdin=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, facts: Mapping[str, str]) -> None:
        """Run it once, with these in its environment; nobody waits for it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{json.dumps(dict(facts))}\n")
            self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)


def main(command: str) -> int:
    running: list[subprocess.Popen[bytes]] = []
    for line in sys.stdin:
        running = [one for one in running if one.poll() is None]
        environment = {**os.environ, **json.loads(line)}
        with suppress(OSError):
            running.append(
                subprocess.Popen(["sh", "-c", command], env=environment, stdin=subprocess.DEVNULL)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
