"""Make the recordings of analysis/samples again, on the two QEMUs that the tests use.

Run as root from the top of the tree: ``.venv/bin/python scripts/samples.py [NAME...]``. Each is
one recording of a stock QEMU; what it must show stands in analysis/samples/labels.toml, and
tests/unit/test_samples.py holds it to that. Counts that are left to chance (``stock``) change
with each making: write the new ones into the labels.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from qtrace.experiment.reroute import Rerouting
from qtrace.experiment.steer import Steering
from qtrace.experiment.subject import Subject
from qtrace.lab.guest import Accelerator, Guest, find_qemu, save_round
from qtrace.lab.jobs import save
from qtrace.lab.saves import BOTTOM_HALF, IDLE_SOCKETS, recorded
from qtrace.lab.scenario import Setup
from qtrace.lab.scenarios import SCENARIOS
from qtrace.recorder.session import Recording
from qtrace.trace.convert import convert

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "analysis" / "samples"
UNPACKED = ROOT / ".cache" / "qemu-backports"
# A recording names the executable: this one lies where nobody's home is.
NEUTRAL = Path("/opt/qemu-10.0")

OLD = find_qemu()
NEW = NEUTRAL / "usr/bin/qemu-system-x86_64"
FORCED, CONTROL, MANY = 12, 60, 300
REAL_SAVES, MEMORY_MIB = 3, 1024
DAEMON_REQUESTS, BENCH_REQUESTS = 211, 997


def scenario(name: str, qemu: Path, accel: Accelerator) -> Callable[[Path], None]:
    """A scenario of the laboratory as it is."""

    def make(trace: Path) -> None:
        chosen = SCENARIOS[name]
        outcome = chosen.run(
            setup(trace, qemu, accel, rounds=chosen.rounds, timeout_s=chosen.timeout_s)
        )
        assert outcome.proven, outcome

    return make


def setup(
    trace: Path, qemu: Path, accel: Accelerator, rounds: int = 1, timeout_s: float = 60
) -> Setup:
    return Setup(qemu, accel, rounds, timeout_s, trace, force=True, progress=lambda done: None)


def steered(qemu: Path, accel: Accelerator) -> Callable[[Path], None]:
    """As many saves forced onto the main thread as then onto the vCPU thread."""

    def make(trace: Path) -> None:
        with recorded(setup(trace, qemu, accel), "pflash") as (guest, recording):
            subject = Subject(guest.pid, BOTTOM_HALF)
            for run_on in ("main", "vcpu"):
                with Steering(subject, run_on, FORCED) as steering:
                    for number in range(FORCED):
                        save_round(guest.qmp, f"{run_on}{number}")
                        recording.poll(0)
                assert [run.as_wanted for run in steering.seen] == [True] * FORCED

    return make


def control(qemu: Path, accel: Accelerator) -> Callable[[Path], None]:
    """Saves of the same machine, whose guest leaves its devices alone."""

    def make(trace: Path) -> None:
        with recorded(setup(trace, qemu, accel), "idle", idle_sockets=IDLE_SOCKETS) as (
            guest,
            recording,
        ):
            rounds(guest, recording, CONTROL)

    return make


def many(qemu: Path, accel: Accelerator, *, rerouted: bool) -> Callable[[Path], None]:
    """Saves beside a guest that writes to its flash chip: chance decides, or the proposed fix."""

    def make(trace: Path) -> None:
        with recorded(setup(trace, qemu, accel), "pflash", idle_sockets=IDLE_SOCKETS) as (
            guest,
            recording,
        ):
            subject = Subject(guest.pid, BOTTOM_HALF)
            with Rerouting(subject, "iohandler") if rerouted else nullcontext():
                rounds(guest, recording, MANY)

    return make


def rounds(guest: Guest, recording: Recording, count: int) -> None:
    for number in range(count):
        save_round(guest.qmp, f"save{number}")
        recording.poll(0)


def real_saves(qemu: Path, accel: Accelerator, *, rerouted: bool) -> Callable[[Path], None]:
    """Saves that save: the reply to the command comes late, or with the fix at once."""

    def make(trace: Path) -> None:
        with recorded(
            setup(trace, qemu, accel), "idle", memory_mib=MEMORY_MIB, disk=True
        ) as (guest, recording):  # fmt: skip
            subject = Subject(guest.pid, BOTTOM_HALF)
            with Rerouting(subject, "iohandler") if rerouted else nullcontext():
                for number in range(REAL_SAVES):
                    save(guest.qmp, f"save{number}")
                    recording.poll(0)

    return make


def all_daemon(qemu: Path) -> Callable[[Path], None]:
    """Every bottom half of a storage daemon whose IOThread serves an NBD export."""

    def make(trace: Path) -> None:
        folder = trace.parent
        nbd = folder / "nbd"
        daemon = subprocess.Popen(
            [qemu.with_name("qemu-storage-daemon"), "--object", "iothread,id=iothread0",
             "--blockdev", f"driver=file,node-name=disk,filename={disk(folder)}",
             "--nbd-server", f"addr.type=unix,addr.path={nbd}",
             "--export", "type=nbd,id=export,node-name=disk,name=disk,iothread=iothread0"]
        )  # fmt: skip
        try:
            while not nbd.exists():
                assert daemon.poll() is None
                time.sleep(0.01)
            raw = trace.with_name("trace.raw")
            with Recording.start(daemon.pid, output=raw, everything=True) as recording:
                subprocess.run(
                    [*bench(qemu, DAEMON_REQUESTS), f"nbd+unix:///disk?socket={nbd}"],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                recording.stop("sample ended")
        finally:
            daemon.kill()
            daemon.wait()
        convert(raw, trace)

    return make


def all_bench(qemu: Path) -> Callable[[Path], None]:
    """Every bottom half of a program without a guest: nothing in it is wrong."""

    def make(trace: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "qtrace", "run", "--all", "-o", trace, "--",
             *bench(qemu, BENCH_REQUESTS), disk(trace.parent)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    return make


def bench(qemu: Path, requests: int) -> list[str]:
    return [str(qemu.with_name("qemu-img")), "bench", "-f", "raw", "-t", "none", "-c",
            str(requests), "-d", "8", "-s", "4096"]  # fmt: skip


def disk(folder: Path) -> Path:
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return path


# CSV where a reader may want to look into the file.
SAMPLES_MADE_BY: dict[str, Callable[[Path], None]] = {
    "vcpu-poll-7.2-tcg.csv": steered(OLD, "tcg"),
    "vcpu-poll-10.0-kvm.parquet": steered(NEW, "kvm"),
    "main-loop-7.2-tcg.parquet": control(OLD, "tcg"),
    "main-loop-10.0-kvm.parquet": control(NEW, "kvm"),
    "stock-7.2-tcg.parquet": many(OLD, "tcg", rerouted=False),
    "rerouted-7.2-tcg.parquet": many(OLD, "tcg", rerouted=True),
    "load-10.0-tcg.parquet": scenario("load", NEW, "tcg"),
    "delete-7.2-kvm.parquet": scenario("delete", OLD, "kvm"),
    "stranded-10.0-tcg.csv": scenario("stranded", NEW, "tcg"),
    "crash-7.2-tcg.csv": scenario("crash", OLD, "tcg"),
    "late-reply-stock-10.0-kvm.parquet": real_saves(NEW, "kvm", rerouted=False),
    "late-reply-rerouted-10.0-kvm.parquet": real_saves(NEW, "kvm", rerouted=True),
    "all-daemon-10.0.parquet": all_daemon(NEW),
    "all-bench-7.2.parquet": all_bench(OLD),
}


@contextmanager
def neutral_qemu() -> Iterator[None]:
    """The unpacked QEMU at a place that says nothing about this machine."""
    if not UNPACKED.exists():
        sys.exit("make qemus")
    made = not NEUTRAL.exists()
    if made:
        shutil.copytree(UNPACKED, NEUTRAL, symlinks=True)
    try:
        yield
    finally:
        if made:
            shutil.rmtree(NEUTRAL)


def main(names: list[str]) -> None:
    unknown = set(names) - set(SAMPLES_MADE_BY)
    if unknown:
        sys.exit(f"no such sample: {', '.join(sorted(unknown))}")
    with neutral_qemu():
        for name in names or SAMPLES_MADE_BY:
            with tempfile.TemporaryDirectory(prefix="qtrace-") as folder:
                output = SAMPLES / name
                everything = name.startswith("all-")
                trace = Path(folder) / (name if everything else "trace.csv")
                SAMPLES_MADE_BY[name](trace)
                if trace.suffix != output.suffix:
                    made = Path(folder) / name
                    convert(trace, made)
                    trace = made
                shutil.copy(trace, output)
            print(f"{name}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
