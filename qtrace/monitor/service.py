"""The monitor while it runs: look, tell the listener and systemd, act on what comes up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from qtrace.monitor.host_watch import HostWatch, News
from qtrace.monitor.listener_process import Listener
from qtrace.record.disk import RESERVE

# What has started and what has come up is looked for so often.
REFRESH_S = 1.0
# Of one guest an autopsy is made at most so often.
AUTOPSY_EVERY_S = 600.0
# Files by how their names end; no others in the folder are touched.
AUTOPSY, FLIGHT = ".autopsy", ".flight.csv"
WORDS = {AUTOPSY: "autopsy", FLIGHT: "last events"}
# The monitor is ahead of others, what it starts is not.
AS_OTHERS = ("nice", "-n", "10")


@dataclass(frozen=True)
class _Running:
    """An autopsy that is being made, and the file that its words go to."""

    vm: str
    child: subprocess.Popen[bytes]
    said: TextIO

    def why(self) -> str:
        """Why it has failed, and its remedy."""
        self.said.seek(0)
        lines = dict(line.split(": ", 1) for line in self.said if ": " in line)
        why = lines.get("error", f"it ended with status {self.child.returncode}\n").strip()
        remedy = lines.get("remedy", "qtrace autopsy --pid PID -o FILE shows it").strip()
        return f"no autopsy of {self.vm}: {why}\nremedy: {remedy}"


class Autopsies:
    """Autopsies of guests with findings, and their last events, below one folder: at most so many
    bytes, the oldest are removed first."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._made: dict[tuple[int, str], float] = {}
        self._running: list[_Running] = []
        self._unmade: list[str] = []
        self._number = 0

    def make(self, one: News) -> Path | None:
        """Begin one, unless there was one of that guest a short while ago."""
        if not Path(f"/proc/{one.pid}").exists() or not self._is_due(one, AUTOPSY):
            return None
        output = self._place(one, AUTOPSY)
        if output is None:
            return None
        command = ["-m", "qtrace", "autopsy", "--pid", str(one.pid), "-o", str(output)]
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        child = subprocess.Popen(
            [*AS_OTHERS, sys.executable, *command], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        self._running.append(_Running(one.vm, child, said))
        return output

    def write_last(self, one: News) -> Path | None:
        """Begin to write its last events, where they are kept; as often as an autopsy."""
        if one.probes is None or not self._is_due(one, FLIGHT):
            return None
        path = self._place(one, FLIGHT)
        if path is None:
            return None

        def failed(why: str) -> None:
            self._unmade.append(f"no {WORDS[FLIGHT]} of {one.vm}: {why}")

        return path if one.probes.write_last(path, failed) else None

    def _is_due(self, one: News, kind: str) -> bool:
        now = time.monotonic()
        if now - self._made.get((one.pid, kind), -AUTOPSY_EVERY_S) < AUTOPSY_EVERY_S:
            return False
        self._made[one.pid, kind] = now
        return True

    def _place(self, one: News, kind: str) -> Path | None:
        """Where a file goes; None where there is no room for it."""
        self._make_room()
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < RESERVE:
            self._unmade.append(
                f"no {WORDS[kind]} of {one.vm}: less than {RESERVE >> 20} MiB are free in "
                f"{self._folder}\n"
                "remedy: make room there, or name a folder on another disk"
            )
            return None
        self._number += 1
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in one.vm)[:60]
        return self._folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{self._number}-{safe}{kind}"

    def failed(self) -> list[str]:
        """Why there is no autopsy where one was due, and what mends it, on two lines each; once."""
        ended = [one for one in self._running if one.child.poll() is not None]
        self._running = [one for one in self._running if one not in ended]
        unmade, self._unmade = self._unmade, []
        return [*unmade, *(one.why() for one in ended if one.child.returncode)]

    def _make_room(self) -> None:
        found = sorted(
            (path.stat().st_mtime, path.stat().st_size, path)
             for kind in WORDS for path in self._folder.glob(f"*{kind}")
        )  # fmt: skip
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def close(self) -> None:
        """Wait for those that are being made."""
        for one in self._running:
            one.child.wait()


def run(
    watch: HostWatch,
    listener: Listener | None,
    autopsies: Autopsies | None,
    say: Callable[[News, Path | None, Path | None], None],
    warn: Callable[[str], None],
    dropped: Callable[[], int],
    ended: Callable[[], bool],
) -> None:
    """Until ``ended``.

    Args:
        say: is told each finding that comes up, the autopsy of it that is being made, and the
            file that its last events go to.
        warn: is told what does not work, and what mends it, on two lines.
        dropped: how many lines nobody has read.

    Raises:
        MonitorFailed
    """
    at = time.monotonic()
    while not ended():
        for one in watch.refresh():
            say(one, autopsies.make(one) if autopsies else None,
                autopsies.write_last(one) if autopsies else None)  # fmt: skip
        for lines in autopsies.failed() if autopsies else ():
            warn(lines)
        if listener is not None:
            listener.tell(replace(watch.state, lines_dropped=dropped()))
        notify_systemd("READY=1\nWATCHDOG=1")
        at = max(at + REFRESH_S, time.monotonic())
        watch.wait(max(0.0, at - time.monotonic()))
    notify_systemd("STOPPING=1")


def notify_systemd(text: str) -> None:
    """sd_notify(3); nothing where no systemd has started this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.sendto(text.encode(), address.replace("@", "\0", 1))
