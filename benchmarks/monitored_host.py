"""A host full of small guests, idle and busy, and a monitor that watches these alone."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from qtrace.errors import QtraceError
from qtrace.lab.guest import DISK, DISK_MIB, Accelerator, Guest, find_qemu, kvm_works
from qtrace.process.qmp_client import QmpClient

GUESTS = int(os.environ.get("QTRACE_GUESTS", "100"))
# Of these so many have something to do, the others idle.
BUSY = int(os.environ.get("QTRACE_BUSY", "4"))
TIMEOUT_S = 120.0
# Others' guests on this host are not ours, another run's neither.
NAME = f"bench-{os.getpid()}-"
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


class BusyGuest(Protocol):
    """A guest that has something to do.

    Attributes:
        what: it does, in words.
    """

    name: str
    what: str

    def done(self) -> int:
        """How much of that it has done, modulo 2**32."""


class Writing:
    """A guest that writes to its flash without a pause."""

    def __init__(self, name: str, accel: Accelerator, stack: ExitStack) -> None:
        self.name, self.what = name, f"{accel}: flash writes"
        self._guest = stack.enter_context(Guest(find_qemu(), accel, extra_args=_named(name)))

    def done(self) -> int:
        return self._guest.flash_writes()


class Copying:
    """A guest whose disk is copied from end to end again and again, as qemu-img would: by
    coroutines, with requests in flight, in its main loop."""

    def __init__(self, name: str, accel: Accelerator, stack: ExitStack) -> None:
        self.name, self.what = name, f"{accel}: copies of its disk"
        guest = stack.enter_context(
            Guest(find_qemu(), accel, "idle", disk=True, extra_args=_named(name))
        )
        guest.qmp.command("human-monitor-command", **{
            "command-line": f'qemu-io {DISK} "write -P 7 0 {DISK_MIB}M"',
        })  # fmt: skip
        sink = {"driver": "null-co", "node-name": "sink", "size": DISK_MIB << 20}
        guest.qmp.command("blockdev-add", **sink)
        self._copied = 0
        self._ends = threading.Event()
        thread = threading.Thread(target=self._copy, args=(guest.second_qmp_socket,), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(self._ends.set)

    def done(self) -> int:
        return self._copied

    def _copy(self, path: Path) -> None:
        with suppress(QtraceError), QmpClient(path, TIMEOUT_S) as qmp:
            while not self._ends.is_set():
                job = {"job-id": "copy", "device": DISK, "target": "sink", "sync": "full"}
                qmp.command("blockdev-backup", **job)
                qmp.wait_event("BLOCK_JOB_COMPLETED")
                self._copied += 1


def _named(name: str) -> tuple[str, str]:
    return ("-name", f"{name},debug-threads=on")


@contextmanager
def busy_guests() -> Iterator[list[BusyGuest]]:
    """Flash writes and copies, emulated and by KVM, in turn."""
    with ExitStack() as stack:
        kinds: list[Accelerator] = ["tcg", "kvm"] if kvm_works() else ["tcg"]
        guests: list[BusyGuest] = []
        for number in range(min(BUSY, GUESTS)):
            kind = (Writing, Copying)[number // len(kinds) % 2]
            guests.append(kind(f"{NAME}busy-{number}", kinds[number % len(kinds)], stack))
        yield guests


@contextmanager
def idle_guests() -> Iterator[list[SmallGuest]]:
    """The others."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        guests = []
        for number in range(GUESTS - min(BUSY, GUESTS)):
            guests.append(SmallGuest(number, Path(folder)))
            stack.callback(guests[-1].close)
        yield guests


class Monitor:
    """A monitor of these guests."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qtrace", "monitor", "--listen", "127.0.0.1:0",
             "--name", f"{NAME}*", *options],
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

    def of_vms(self, metric: str) -> dict[str, float]:
        """A metric that each guest has once."""
        pattern = rf'^{metric}{{[^}}]*vm="([^"]+)"[^}}]*}} (\S+)$'
        return {vm: float(v) for vm, v in re.findall(pattern, self.scrape(), re.MULTILINE)}

    def wait_for_looks(self, count: int = 2) -> None:
        """Until each guest has been looked at so many times."""
        deadline = time.monotonic() + TIMEOUT_S
        while sum(n >= count for n in self.of_vms("qtrace_looks_total").values()) < GUESTS:
            assert time.monotonic() < deadline
            time.sleep(0.5)

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
