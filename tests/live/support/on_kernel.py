"""What is recorded in a guest of scripts/kernels.sh: run there, with a file for the counts."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from qtrace.lab.block_load import bench_command, disk_image
from qtrace.lab.guest import Guest, find_qemu
from qtrace.trace.reader import read_trace
from tests.live.support.attached import attach_command, attached, save, watched_half
from tests.live.support.counted import counting, own_copy

SAVES, REQUESTS = 20, 500
# tmpfs has O_DIRECT since Linux 6.6 only; the last option counts.
CACHED = ("-t", "writeback")
NAMES = ("bpf", "perfmon", "sys_ptrace", "dac_read_search")
# What perf events take; and, before Linux 5.11, ring buffers.
MORE = ("sys_admin", "sys_resource")
QTRACE = (sys.executable, "-m", "qtrace")


def nobody(*names: str) -> list[str]:
    held = ",".join(f"+{name}" for name in names)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            f"--inh-caps={held}", f"--ambient-caps={held}"]  # fmt: skip


def said(command: Sequence[str]) -> list[object]:
    """How it ended, and the error that it told."""
    run = subprocess.run(command, text=True, capture_output=True)
    lines = (run.stderr or run.stdout).splitlines()
    return [run.returncode, next((line for line in lines if line.startswith("error")), "")]


def saved(guest: Guest, *options: object) -> list[object]:
    """How an attach ended during which a guest was saved, and the verdicts."""
    with attached(guest.pid, *options) as attach:
        save(guest, SAVES)
        status, report, _err = attach.end()
    return [status, watched_half(report)["verdicts"]]


def benched(folder: Path, user: Sequence[str] = ()) -> dict[str, object]:
    """A run of qemu-img under `--all`, and what the kernel counted of it by itself."""
    image = own_copy(find_qemu("qemu-img"), folder)
    trace = folder / "all.parquet"
    bench = bench_command(image, disk_image(folder, 1 << 20), REQUESTS, *CACHED)
    for place in (folder, folder / "disk.raw"):
        place.chmod(0o777)
    run = [*user, *QTRACE, "run", "--all", "--force", "-o", str(trace), "--", *bench]
    with counting(image) as kernel:
        status = said(run)
    counts = Counter(read_trace(trace).frame["event"]) if trace.exists() else Counter()
    return {
        "status": status,
        "trace": [counts[kind] for kind in ("run", "return", "cancel", "co_schedule", "lost")],
        "kernel": [
            *[kernel["aio_bh_call"]] * 2, kernel["cancel"],
            kernel["aio_co_schedule"] + kernel["aio_co_reschedule_self"], 0,
        ],
    }  # fmt: skip


def main() -> None:
    found: dict[str, object] = {"release": platform.release()}
    result = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name, Guest(find_qemu(), "tcg", "idle") as guest:
        folder = Path(name)
        inspect = [*QTRACE, "inspect", "--pid", str(guest.pid)]
        short = attach_command(guest.pid, "--duration", "1s")
        tries: dict[str, Callable[[], object]] = {
            "run --all": lambda: benched(folder),
            "run --all, uid 65534": lambda: benched(folder, nobody(*NAMES, *MORE)),
            # Perf events are gone some seconds after the recording only: gdb would find them.
            "gdb": lambda: saved(guest, "--backend", "gdb"),
            "attach": lambda: saved(guest, "-o", folder / "t.csv"),
            "rows": lambda: Counter(read_trace(folder / "t.csv").frame["event"]),
            "inspect": lambda: said(inspect),
            "inspect, uid 65534": lambda: said([*nobody(*NAMES[2:]), *inspect]),
            "four capabilities": lambda: said([*nobody(*NAMES), *short]),
            "and two more": lambda: said([*nobody(*NAMES, *MORE), *short]),
            "lab": lambda: said([*QTRACE, "lab", "stranded", "--accel", "tcg"]),
        }
        for what, measure in tries.items():
            try:
                found[what] = measure()
            except Exception as error:  # The others are still to be tried: a boot takes minutes.
                found[what] = repr(error)
            result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
