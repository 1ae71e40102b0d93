"""What is recorded in a guest of scripts/kernels.sh: run there, with a file for the counts."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest, find_qemu
from qtrace.trace.reader import read_trace
from tests.live.support.attached import attach_command, attached, save, watched_half

SAVES, REQUESTS = 20, 500
NAMES = ("bpf", "perfmon", "sys_ptrace", "dac_read_search")
QTRACE = (sys.executable, "-m", "qtrace")


def nobody(*names: str) -> list[str]:
    held = ",".join(f"+{name}" for name in names)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            f"--inh-caps={held}", f"--ambient-caps={held}"]  # fmt: skip


def said(command: Sequence[str]) -> list[object]:
    """How it ended, and the last thing that it said."""
    run = subprocess.run(command, text=True, capture_output=True)
    lines = (run.stderr or run.stdout).splitlines()
    return [run.returncode, next((line for line in lines if line.startswith("error")), "")]


def main() -> None:
    found: dict[str, object] = {"release": platform.release()}
    result = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name, Guest(find_qemu(), "tcg", "idle") as guest:
        folder = Path(name)
        with attached(guest.pid, "-o", folder / "t.csv") as attach:
            save(guest, SAVES)
            status, report, _err = attach.end()
        found["attach"] = [status, watched_half(report)["verdicts"]]
        found["rows"] = Counter(read_trace(folder / "t.csv").frame["event"])
        found["inspect"] = said([*QTRACE, "inspect", "--pid", str(guest.pid)])
        short = attach_command(guest.pid, "--duration", "1s")
        found["four capabilities"] = said([*nobody(*NAMES), *short])
        found["and CAP_SYS_ADMIN"] = said([*nobody(*NAMES, "sys_admin"), *short])
        bench = bench_command(find_qemu("qemu-img"), disk_image(folder, 1 << 20), REQUESTS)
        trace = folder / "all.parquet"
        found["run --all"] = said([*QTRACE, "run", "--all", "-o", str(trace), "--", *bench])
        counts = Counter(read_trace(trace).frame["event"])
        found["bench"] = {kind: counts[kind] for kind in ("schedule", "cancel", "run", "lost")}
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
