"""From the start of ``qtrace attach`` to its ``recording`` line, beside bpftrace."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pairs import Row, qemus
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.lab.guest import Guest
from qtrace.sites.scan_cache import scan_module

ROUNDS = 15
COLD_ROUNDS = 5


def run(_pairs: int) -> list[Row]:
    """Warm beside bpftrace with two of the probes, and cold (first scan of this binary)."""
    rows = []
    for version, qemu in qemus():
        scan = scan_module(Module(Elf(qemu), 0))
        half = next(h for h in scan.bottom_halves if h.name == "snapshot_save_job_bh")
        with Guest(qemu, firmware="idle") as guest:
            _attach(guest.pid)
            ours, theirs, cold = [], [], []
            for _ in range(ROUNDS):
                ours.append(_attach(guest.pid))
                if shutil.which("bpftrace"):
                    theirs.append(_bpftrace(qemu, half.sites[0].address, half.callback))
            for _ in range(COLD_ROUNDS):
                with tempfile.TemporaryDirectory() as folder:
                    cold.append(_attach(guest.pid, Path(folder)))
        warm = statistics.median(ours)
        beside = "bpftrace is not installed"
        ratio = "-"
        if theirs:
            ratio = f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}"
            beside = f"bpftrace {statistics.median(theirs):.2f} s"
        rows += [
            (f"{version}: arm, warm", f"{warm:.2f} s", ratio, beside, "at most 1.5"),
            (
                f"{version}: the same, cold",
                f"{statistics.median(cold):.2f} s",
                "-",
                f"warm {warm:.2f} s",
                "at most 3 s more",
            ),
        ]
    return rows


def _attach(pid: int, cache: Path | None = None) -> float:
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "qtrace", "attach", "--pid", str(pid), "-b", "snapshot_save_job_bh"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    took = time.monotonic() - began
    if not line.startswith("recording"):
        raise RuntimeError(line + process.stderr.read())
    process.send_signal(signal.SIGINT)
    process.communicate()
    return took


def _bpftrace(qemu: Path, site: int, callback: int) -> float:
    """Start to the first event of its event loop: by then its probes are set."""
    script = (
        f"uprobe:{qemu}:{site:#x} {{ @[tid] = count(); }} "
        f"uprobe:{qemu}:{callback:#x} {{ @[tid] = count(); }} interval:ms:1 {{ exit(); }}"
    )
    began = time.monotonic()
    # --unsafe: bpftrace refuses addresses in stripped binaries otherwise.
    subprocess.run(["bpftrace", "--unsafe", "-e", script], check=True, capture_output=True)
    return time.monotonic() - began
