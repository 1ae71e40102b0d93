"""``qtrace monitor`` while it runs, and what it tells."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.limits import TIMEOUT_S


@contextmanager
def monitor(*options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it listens."""
    command = ["monitor", "--listen", "127.0.0.1:0", "--every", "0.5s", *map(str, options)]
    process = subprocess.Popen(
        [sys.executable, "-m", "qtrace", *command], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        match = re.fullmatch(r"listening on (https?://\S+)\n", first)
        assert match, first + process.stderr.read()
        yield process, match[1]
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


def parts(pid: int) -> dict[str, int]:
    """The processes of a monitor, by what they do."""
    found = {"looker": pid}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if words[1:2] == ["-m"] and words[2].startswith("qtrace.monitor."):
            found[words[2].removeprefix("qtrace.monitor.")] = int(child)
    return found


def until(condition: Callable[[], str], what: str) -> str:
    """What it returns, once that is not empty."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)
    return found


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())


def values(text: str, name: str, vm: str) -> list[float]:
    pattern = rf'^{name}{{[^}}]*vm="{re.escape(vm)}"[^}}]*}} (\S+)$'
    return [float(found) for found in re.findall(pattern, text, re.MULTILINE)]
