"""Make the recordings of analysis/samples that the lints are tested on again.

Run as root from the top of the tree: ``.venv/bin/python scripts/lint_samples.py [NAME...]``. Each
is one recording of the distribution's QEMU 7.2; what it must show stands in
tests/unit/test_lint_samples.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

from qtrace.experiment.reroute import Rerouting
from qtrace.experiment.strand import Stranding
from qtrace.experiment.subject import Subject
from qtrace.lab.guest import Guest, find_qemu, save_round
from qtrace.lab.jobs import NO_NODE, REAL, run_job
from qtrace.lab.saves import BOTTOM_HALF
from qtrace.lab.scenarios.stranded import _quit, _until_proven
from qtrace.lab.scenarios.vcpu_poll import ran_in_vcpu_poll
from qtrace.recorder.session import Recording
from qtrace.target.qmp import QmpClient
from qtrace.trace.convert import convert

SAMPLES = Path(__file__).resolve().parent.parent / "analysis" / "samples"
QEMU = find_qemu()
SAVES, ROUNDS, REQUESTS, MEMORY_MIB = 5, 200, 997, 1024
PUT_OFF_S, LIMIT_S = 0.5, 30.0


@contextmanager
def recorded(trace: Path, guest: Guest, **options: Any) -> Iterator[Recording]:
    """Every bottom half of a guest."""
    raw = trace.with_suffix(".raw")
    with Recording.start(guest.pid, output=raw, everything=True, **options) as recording:
        yield recording
        recording.stop("sample ended")
    convert(raw, trace)


def pflash(trace: Path) -> None:
    """A guest that writes to its flash chip, saved until chance gives a save to the vCPU thread."""
    with Guest(QEMU, "kvm", idle_sockets=200) as guest, recorded(trace, guest) as recording:
        for number in range(ROUNDS):
            save_round(guest.qmp, f"save{number}")
            if number and any(map(ran_in_vcpu_poll, recording.poll(0))):
                break


def qtest(trace: Path) -> None:
    """The same device writes by qtest, which makes them on the main thread."""
    with tempfile.TemporaryDirectory(prefix="qtrace-") as folder, socket(AF_UNIX) as server:
        server.bind(f"{folder}/qtest")
        server.listen(1)
        extra = ("-accel", "qtest", "-qtest", f"unix:{folder}/qtest")
        with Guest(QEMU, firmware="idle", extra_args=extra) as guest:
            client = server.accept()[0]
            ended = threading.Event()

            def write() -> None:
                while not ended.is_set():
                    client.sendall(b"writeb 0xfffe0000 0x40\nwriteb 0xfffe0000 0x55\n")
                    client.recv(100)

            writer = threading.Thread(target=write)
            with recorded(trace, guest) as recording:
                writer.start()
                for number in range(SAVES):
                    save_round(guest.qmp, f"save{number}")
                    recording.poll(0)
                ended.set()
                writer.join()


def strand(trace: Path) -> None:
    """The mail thread's experiment: put off again and again, and stranded when QEMU quits.

    Another bottom half is watched, so that the schedules that gdb makes are recorded.
    """
    options: dict[str, Any] = {"patterns": ("job_exit",), "stall_after_s": 0.5}
    with Guest(QEMU, firmware="idle") as guest, recorded(trace, guest, **options) as recording:
        with Stranding(Subject(guest.pid, BOTTOM_HALF)) as stranding:
            guest.qmp.command("snapshot-save", **{"job-id": "job", "tag": "qtrace", **NO_NODE})
            until = time.monotonic() + PUT_OFF_S
            while time.monotonic() < until:
                stranding.poll(0.1)
                recording.poll(0)
            _quit(guest)
            limit = time.monotonic() + LIMIT_S
            # Bottom halves that are not watched get their rows at the end: gdb has to go first.
            while time.monotonic() < limit and stranding.poll(0.5):
                recording.poll(0)
        _until_proven(recording, time.monotonic() + 3)


def save(trace: Path, *, rerouted: bool = False) -> None:
    """A real save of a guest with some memory, and a command from another client meanwhile."""
    with (
        Guest(QEMU, firmware="idle", memory_mib=MEMORY_MIB, disk=True) as guest,
        QmpClient(guest.second_qmp_socket, LIMIT_S) as second,
        recorded(trace, guest, qmp_socket=None) as recording,
    ):
        experiment = Rerouting(Subject(guest.pid, BOTTOM_HALF), "iohandler") if rerouted else None
        if experiment is not None:
            experiment.__enter__()
        try:
            asked = threading.Timer(0.03, lambda: second.command("query-status"))
            asked.start()
            run_job(guest.qmp, "snapshot-save", "save", **REAL)
            asked.join()
            recording.poll(0)
        finally:
            if experiment is not None:
                experiment.__exit__(None, None, None)


def control(trace: Path) -> None:
    """Saves that the main loop runs, beside a guest that leaves its devices alone."""
    with Guest(QEMU, firmware="idle", idle_sockets=200) as guest, recorded(trace, guest) as running:
        for number in range(SAVES):
            save_round(guest.qmp, f"save{number}")
            running.poll(0)


def idle(trace: Path) -> None:
    """A guest that does nothing."""
    with Guest(QEMU, firmware="idle") as guest, recorded(trace, guest):
        time.sleep(1)


def bench(trace: Path, *options: str) -> None:
    """A program that does block I/O as fast as it can."""
    disk = trace.with_name("disk.raw")
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    image = [str(QEMU.with_name("qemu-img")), "bench", "-f", "raw", "-t", "none", *options]
    command = [*image, "-c", str(REQUESTS), "-d", "32", "-s", "4096", str(disk)]
    run = [sys.executable, "-m", "qtrace", "run", "--all", "-o", str(trace), "--", *command]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)


MADE_BY: dict[str, Callable[[Path], None]] = {
    "lint-pflash": pflash,
    "lint-qtest": qtest,
    "lint-strand": strand,
    "lint-save": save,
    "lint-rerouted": lambda trace: save(trace, rerouted=True),
    "lint-main-loop": control,
    "lint-idle": idle,
    "lint-bench": bench,
    "lint-bench-native": lambda trace: bench(trace, "-n"),
}


def main(names: list[str]) -> None:
    SAMPLES.mkdir(exist_ok=True)
    for name in names or MADE_BY:
        with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
            trace = Path(folder) / f"{name}.parquet"
            MADE_BY[name](trace)
            (SAMPLES / trace.name).write_bytes(trace.read_bytes())
        print(f"{name}: {(SAMPLES / trace.name).stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
