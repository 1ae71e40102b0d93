"""What qtrace itself takes: memory while it records, the help, one look."""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pairs import Row, qemus
from qtrace.lab.guest import Guest

ROUNDS = 5
# So long after it was armed: what it learns of the target it has learned by then.
SETTLED_S = 3.0
QTRACE = (sys.executable, "-m", "qtrace")


def run(_pairs: int) -> list[Row]:
    """The memory beside a guest that writes to flash, which keeps `--all` busy."""
    rows = []
    for version, qemu in qemus():
        with Guest(qemu) as guest:
            for name, options, most in (("watching", (), 75), ("--all", ("--all",), 95)):
                took = statistics.median(_memory(guest.pid, *options) for _ in range(ROUNDS))
                goal = f"at most {most} MiB"
                rows.append(
                    (f"{version}: Pss of both processes, {name}", f"{took:.0f} MiB", "-", "-", goal)
                )
        with Guest(qemu, firmware="idle") as guest:
            look = _median("inspect", "--pid", str(guest.pid))
        rows.append((f"{version}: inspect, one look", f"{look:.2f} s", "-", "-", "at most 0.35 s"))
    of_all, of_one = _median("--help"), _median("attach", "--help")
    ratio = f"{of_all / of_one:.2f}"
    beside = f"attach --help {of_one:.2f} s"
    rows.append(("qtrace --help", f"{of_all:.2f} s", ratio, beside, "at most 1.3"))
    return rows


def _memory(pid: int, *options: str) -> float:
    """Pss of an attach, MiB: of the recorder and of its child, which takes the looks."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*QTRACE, "attach", "--pid", str(pid), "-o", str(Path(folder, "t.parquet")), *options],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("recording")
        time.sleep(SETTLED_S)
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        assert len(children) == 1
        kilobytes = sum(map(_pss, (process.pid, *children)))
        process.send_signal(signal.SIGINT)
        process.communicate()
    return kilobytes / 1024


def _pss(pid: int) -> int:
    """In kB. What others have mapped, too, counts in part: beside other Pythons it is less."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (kilobytes,) = re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(kilobytes)


def _median(*arguments: str) -> float:
    took = []
    for _ in range(3 * ROUNDS):
        began = time.monotonic()
        subprocess.run([*QTRACE, *arguments], check=True, stdout=subprocess.DEVNULL)
        took.append(time.monotonic() - began)
    return statistics.median(took)
