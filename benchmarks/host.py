"""A whole host under one monitor: what it costs, how soon a hang is told, and false alarms."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.pairs import Row
from qtrace.lab.guest import find_qemu

GUESTS = int(os.environ.get("QTRACE_GUESTS", "100"))
# Of each pace, and without any hang, so long.
STEADY_S = float(os.environ.get("QTRACE_STEADY_S", "60"))
HANGS, AT_ONCE = 100, 5
SETTLED_S = 5.0
TIMEOUT_S = 120.0
NAME = "bench-host-"
TICKS = os.sysconf("SC_CLK_TCK")


class SmallGuest:
    """An idle guest of 16 MiB, with a QMP connection and a pipe that hangs it."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = f"{NAME}{number}"
        self._pipe = folder / f"{number}.pipe"
        os.mkfifo(self._pipe)
        path = folder / f"{number}.qmp"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(1)
            fd = listening.fileno()
            self._process = subprocess.Popen(
                [find_qemu(), "-name", f"{self.name},debug-threads=on", "-accel", "tcg,tb-size=1",
                 "-m", "16", "-nodefaults", "-display", "none",
                 "-chardev", f"socket,id=q,fd={fd},server=on,wait=off",
                 "-mon", "chardev=q,mode=control"],
                stdin=subprocess.DEVNULL, pass_fds=[fd],
            )  # fmt: skip
            self._qmp = socket.socket(socket.AF_UNIX)
            self._qmp.settimeout(TIMEOUT_S)
            self._qmp.connect(str(path))
        self.pid = self._process.pid
        self._said = self._qmp.makefile("r")
        self._ask("qmp_capabilities")
        self._answer()

    def _ask(self, command: str, **arguments: object) -> None:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())

    def _answer(self) -> None:
        for line in self._said:
            if "return" in json.loads(line):
                return
        raise RuntimeError(f"{self.name} has ended")

    def hang(self) -> float:
        """Its main loop opens a pipe that nobody reads. Returns when that was, CLOCK_MONOTONIC."""
        self._ask("pmemsave", val=0, size=1, filename=str(self._pipe))
        while Path(f"/proc/{self.pid}/wchan").read_text() != "wait_for_partner":
            time.sleep(0.001)
        return time.monotonic()

    def go_on(self) -> None:
        self._pipe.read_bytes()
        self._answer()

    def close(self) -> None:
        self._qmp.close()
        self._process.kill()
        self._process.wait()


class Monitor:
    """A monitor of this host's."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qtrace", "monitor", "--listen", "127.0.0.1:0", *options],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        said = self._process.stderr.readline()
        match = re.fullmatch(r"listening on (\S+)\n", said)
        assert match, said
        self.url = match[1]

    def scrape(self) -> str:
        with urllib.request.urlopen(self.url, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode())

    def of_ours(self, metric: str) -> dict[str, float]:
        """A metric of the guests here; others of this host are not ours."""
        pattern = rf'^{metric}{{[^}}]*vm="({NAME}\d+)"[^}}]*}} (\S+)$'
        return {vm: float(v) for vm, v in re.findall(pattern, self.scrape(), re.MULTILINE)}

    @property
    def pids(self) -> list[int]:
        """Of all its processes."""
        pids = [self._process.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        return pids

    def cpu_s(self) -> float:
        used = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
        return used / TICKS

    def pss_mib(self) -> float:
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.pids]
        found = [re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE) for text in texts]
        return sum(int(kilobytes) for (kilobytes,) in found) / 1024

    def close(self) -> str:
        """What it has said."""
        self._process.terminate()
        return self._process.communicate(timeout=TIMEOUT_S)[1]


@contextmanager
def host() -> Iterator[list[SmallGuest]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        guests = []
        for number in range(GUESTS):
            guests.append(SmallGuest(number, Path(folder)))
            stack.callback(guests[-1].close)
        yield guests


def run(_pairs: int) -> list[Row]:
    with host() as guests:
        rows = []
        for every_s, most in ((5, 1), (1, 4)):
            cost, pss = _steady(every_s)
            what = f"{GUESTS} idle guests, a look each {every_s} s"
            goal = f"at most {most} % of a core"
            rows.append((f"{what}: processor", f"{100 * cost:.1f} %", "-", "-", goal))
            goal = f"at most {150 + GUESTS} MiB"
            rows.append((f"{what}: Pss", f"{pss:.0f} MiB", "-", "-", goal))
        rows += _hangs(guests)
    return rows


def _all_looked_at(monitor: Monitor) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while sum(looks >= 2 for looks in monitor.of_ours("qtrace_looks_total").values()) < GUESTS:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _steady(every_s: int) -> tuple[float, float]:
    """Processor time a second, and Pss in MiB, of all of a monitor's processes."""
    monitor = Monitor("--every", f"{every_s}s")
    try:
        _all_looked_at(monitor)
        time.sleep(SETTLED_S)
        before, began = monitor.cpu_s(), time.monotonic()
        time.sleep(STEADY_S)
        cost = (monitor.cpu_s() - before) / (time.monotonic() - began)
        return cost, monitor.pss_mib()
    finally:
        monitor.close()


def _hangs(guests: list[SmallGuest]) -> list[Row]:
    """How soon a hang is in the metrics, and alarms of guests that do not hang."""
    monitor = Monitor("--every", "1s")
    told: list[float] = []
    false = 0
    try:
        _all_looked_at(monitor)
        ends = time.monotonic() + STEADY_S
        while time.monotonic() < ends:
            false += len(monitor.of_ours("qtrace_findings"))
            time.sleep(1)
        for first in range(0, HANGS, AT_ONCE):
            hung = [guests[number % GUESTS] for number in range(first, first + AT_ONCE)]
            since = {guest.name: guest.hang() for guest in hung}
            deadline = time.monotonic() + TIMEOUT_S
            while since and time.monotonic() < deadline:
                stuck = monitor.of_ours("qtrace_main_loop_stuck_seconds")
                now = time.monotonic()
                for name in [name for name in since if stuck[name] > 0]:
                    told.append(now - since.pop(name))
                false += sum(
                    seconds > 0 for name, seconds in stuck.items()
                    if name not in {guest.name for guest in hung}
                )  # fmt: skip
                time.sleep(0.1)
            for guest in hung:
                guest.go_on()
            while any(monitor.of_ours("qtrace_main_loop_stuck_seconds").values()):
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        monitor.close()
    late = sum(seconds > 4 for seconds in told)
    spread = f"median {statistics.median(told):.1f} s, most {max(told):.1f} s"
    return [
        (f"{HANGS} hangs, a look each second: told", f"{len(told)}, {late} later than 4 s",
         "-", spread, "all, at most 4 s after it began"),
        (f"alarms of guests that do not hang, {STEADY_S:.0f} s and during those", str(false),
         "-", "-", "none"),
    ]  # fmt: skip
