"""Our end of the watchdog (``qtrace.gdb.safety.watchdog``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import qtrace
from qtrace.errors import RecorderUnavailable
from qtrace.gdb.safety.rescue import Breakpoint
from qtrace.gdb.safety.watchdog import continue_if_stopped, restore
from qtrace.process.process import Process

ROOT = str(Path(qtrace.__file__).resolve().parents[1])
PROGRAM = (
    f"import sys; sys.path.append({ROOT!r}); "
    "from qtrace.gdb.safety import watchdog; watchdog.main()"
)
LIMIT_S = 5.0


class Guard:
    """A watchdog over one gdb and its target."""

    def __init__(
        self,
        process: Process,
        target: int,
        gdb: int,
        lifeline: int,
        code: Mapping[int, Breakpoint],
        wanted_s: float,
    ) -> None:
        """Start it and wait until it watches.

        Args:
            target, gdb: pidfds.
            lifeline: from ``Lifeline.create``; gdb has it too.
            code: what is at each run-time address that gdb will set.
            wanted_s: for how long threads may be held on purpose.

        Raises:
            RecorderUnavailable: this kernel does not let code be written through /proc.
        """
        memory = os.open(f"/proc/{process.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        fds = (target, gdb, memory, lifeline)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", PROGRAM, str(process.pid), *map(str, fds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,
                cwd="/",
                bufsize=0,
            )
        finally:
            os.close(memory)
        places = {str(a): (b.original.hex(), b.pushes) for a, b in code.items()}
        self._write(json.dumps({"code": places, "wanted_s": wanted_s}) + "\n")
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self._process.wait()
            raise RecorderUnavailable(
                f"the code of process {process.pid} cannot be written through /proc/PID/mem",
                "boot with proc_mem.force_override=always, or record by eBPF",
            )

    def fileno(self) -> int:
        """Readable when it has acted, or has died."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def held(self) -> None:
        """gdb holds the lifeline."""
        self._write("l")

    def stopped_by_user(self) -> None:
        """Whoever stopped the target wants it stopped: no SIGCONT."""
        self._write("u")

    def disarm(self) -> None:
        """gdb has detached: nothing is left to do."""
        self._write("d")

    def finish(self) -> dict[str, Any]:
        """Wait for its end, gdb having ended: what it put back, empty for nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            said, _ = self._process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return {}
        return dict(json.loads(said)) if said else {}

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(text.encode())


def put_back(pid: int, target: int, code: Mapping[int, Breakpoint]) -> dict[str, Any]:
    """What the watchdog does, when both it and gdb have died; ``target`` is a pidfd."""
    with suppress(OSError), open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        found = [a for a, what in code.items() if restore(memory.fileno(), a, what.original)]
        return {"restored": found, "continued": continue_if_stopped(pid, target)}
    return {}
