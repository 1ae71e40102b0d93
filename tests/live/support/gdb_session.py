"""gdb under test, without our environment: one process each, as a user would start it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.left_behind import MARK
from tests.limits import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "gdbscripts/aio.py"
# gdb's own Python, nothing of the tests' environment; no servers, no paging.
ENVIRONMENT = {
    "PATH": os.defpath, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "COLUMNS": "200",
    MARK: os.environ.get(MARK, ""),
}  # fmt: skip
GDB = ("gdb", "-nx", "-q", "-iex", "set debuginfod enabled off")


@dataclass(frozen=True)
class Target:
    """What gdb is pointed at: a live process, or a core file of its executable."""

    arguments: tuple[str, ...]
    pid: int
    executable: Path

    @property
    def is_core(self) -> bool:
        return "-p" not in self.arguments


def live(pid: int, executable: Path) -> Target:
    return Target(("-p", str(pid)), pid, executable)


def core(pid: int, executable: Path, file: Path) -> Target:
    return Target((str(executable), str(file)), pid, executable)


def gdb(
    target: Target | None, *commands: str, script: Path = SCRIPT, cache: Path | None = None
) -> str:
    """What one gdb prints for these commands, after everything that it says at its start.

    Errors of commands are part of it; a traceback fails the test.

    Args:
        cache: the folder in which qtrace has kept what it found, if it has.
    """
    environment = ENVIRONMENT | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    run = subprocess.run(
        [*GDB, "-batch", *(target.arguments if target else ()),
         *_each(f"source {script}", r"echo >>>\n", *commands)],
        env=environment, text=True, timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _start, mark, printed = run.stdout.partition(">>>\n")
    assert mark, run.stdout
    assert "Traceback" not in run.stdout, run.stdout
    assert "Python Exception" not in run.stdout, run.stdout
    return "\n".join(line for line in printed.splitlines() if "detached]" not in line)


def core_of(pid: int, executable: Path, folder: Path) -> Target:
    """A core file of a running process, which runs on."""
    file = folder / "core"
    subprocess.run(
        [*GDB, "-batch", "-p", str(pid), "-ex", f"gcore {file}"],
        env=ENVIRONMENT, timeout=TIMEOUT_S, check=True, capture_output=True,
    )  # fmt: skip
    return core(pid, executable, file)


class Session:
    """A gdb that is driven line by line, as by a person."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout
        self._marks = 0

    def send(self, command: str) -> None:
        self._stdin.write(command + "\n")
        self._stdin.flush()

    def ask(self, command: str) -> str:
        """What a command prints; it has ended when this returns."""
        self._marks += 1
        self.send(command)
        self.send(f"echo mark{self._marks}\\n")
        return self.read_until(f"mark{self._marks}")

    def read_until(self, text: str) -> str:
        """Everything up to a line with this text, that line included."""
        lines = []
        for line in self._stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"gdb ended before {text!r}:\n{''.join(lines)}")


@contextmanager
def session(target: Target, *commands: str) -> Iterator[Session]:
    """A gdb on a live process; afterwards it has let go of it."""
    process = subprocess.Popen(
        [*GDB, "-iex", "set confirm off", "-iex", "set prompt", *target.arguments,
         *_each(f"source {SCRIPT}", *commands)],
        env=ENVIRONMENT, text=True, bufsize=1, process_group=0,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        opened = Session(process)
        opened.ask("")
        yield opened
        opened.send("delete")
        opened.send("detach")
        opened.send("quit")
        process.communicate(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _each(*commands: str) -> Sequence[str]:
    return [part for command in commands for part in ("-ex", command)]
