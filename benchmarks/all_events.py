"""What `--all` adds to qemu-img bench, beside the floor and what one would use instead.

All figures are times that are added to the same work with nothing attached, in rounds of one
run of each, in random order. The floor is an empty BPF program at the very sites of `--all`.
bpftrace and perf sit at the entries of the same functions, and cannot see ends. The first
instruction of qemu_bh_cancel() takes no probe: bpftrace sits at the calls to it, as `--all` does,
perf leaves it out.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.floor import empty_at
from benchmarks.pairs import Row, qemus
from benchmarks.qemu_img import run_bench, seconds
from benchmarks.watching import served_disk
from qtrace.binary.elf import Elf
from qtrace.binary.module import Module
from qtrace.lab.block_load import bench_command, disk_image
from qtrace.process.process import Process
from qtrace.record.child import Child
from qtrace.sites.all_sites import plan_all
from qtrace.trace.reader import read_trace

REQUESTS = 200_000
DAEMON_REQUESTS = 50_000
DISK_BYTES = 1 << 30
ROUNDS = 5

# The fields of --all, as bpftrace gets them at an entry: a QEMUBH is {ctx, name, cb, opaque, next,
# flags}, and the stack pointer points to the return address.
BH = (
    ("%p", "arg0"),
    ("%p", "*(uint64 *)arg0"),
    ("%s", "str(*(uint64 *)(arg0 + 8))"),
    ("%p", "*(uint64 *)(arg0 + 16)"),
    ("%p", "*(uint64 *)(arg0 + 24)"),
)
FLAGS = ("%x", "*(uint32 *)(arg0 + 40)")
CALLER, STACK = ("%p", '*(uint64 *)reg("sp")'), ("%p", 'reg("sp")')
FIELDS = {
    "aio_bh_call": (*BH, CALLER, STACK),
    "qemu_bh_schedule": (*BH, FLAGS, CALLER),
    "aio_bh_schedule_oneshot_full":
        (("%p", "arg0"), ("%s", "str(arg3)"), ("%p", "arg1"), ("%p", "arg2"), CALLER),
    "aio_co_schedule": (("%p", "arg0"), ("%p", "arg1"), CALLER),
}  # fmt: skip
# At a call to qemu_bh_cancel() the return address is not on the stack yet.
CANCEL = (*BH, FLAGS, ("%p", 'reg("ip")'))
# A probe by address in a stripped file is unsafe to it.
BPFTRACE = ("bpftrace", "--unsafe")
Measure = Callable[[], float]


def run(pairs: int) -> list[Row]:
    """``pairs`` beyond 100 add rounds in proportion."""
    rounds = max(ROUNDS * pairs // 100, 3)
    rows: list[Row] = []
    for version, qemu in qemus():
        image = qemu.with_name("qemu-img")
        with tempfile.TemporaryDirectory() as folder:
            disk = disk_image(Path(folder), DISK_BYTES)
            for name, options in (("thread pool", ()), ("native aio", ("-n",))):
                command = bench_command(image, disk, REQUESTS, *options)
                losses: list[int] = []
                modes = _started(image, command, Path(folder), losses)
                rows += _rows(f"{version}: qemu-img bench, {name}", modes, rounds, losses)
        iothread = not version.startswith("7.")
        with served_disk(qemu, iothread) as (pid, url):
            command = bench_command(image, url, DAEMON_REQUESTS)
            with tempfile.TemporaryDirectory() as folder:
                losses = []
                modes = _attached(pid, command, Path(folder), losses)
                what = "storage daemon, IOThread" if iothread else "storage daemon"
                rows += _rows(f"{version}: {what}", modes, rounds, losses)
    return rows


def _rows(name: str, modes: dict[str, Measure], rounds: int, losses: Sequence[int]) -> list[Row]:
    """A row for each mode: what it adds to ``nothing``, in medians.

    ``losses``: events that were lost in each recording, once ``modes`` have run.
    """
    took: dict[str, list[float]] = {mode: [] for mode in modes}
    generator = random.Random(2111)
    for _ in range(rounds):
        for mode in generator.sample(list(modes), len(modes)):
            took[mode].append(modes[mode]())
    bare = took.pop("nothing")
    rows = [(f"{name}: nothing", f"{statistics.median(bare):.2f} s", "1", f"{rounds} rounds", "-")]
    added = {m: [t - b for t, b in zip(ts, bare, strict=True)] for m, ts in took.items()}
    for mode, times in took.items():
        ratio = statistics.median(t / b for t, b in zip(times, bare, strict=True))
        beside, goal = "-", "-"
        if mode == "--all":
            parts = [
                _beside(added[mode], added[other], other)
                for other in ("bpftrace", "perf", "the floor")
                if other in added
            ]
            beside = ", ".join([*parts, f"{sum(losses)} events lost"])
            goal = "0.1 of bpftrace, 2 of the floor, none lost"
        rows.append((f"{name}: {mode}", f"{statistics.median(times):.2f} s", f"{ratio:.2f}",
                     beside, goal))  # fmt: skip
    return rows


def _beside(one: list[float], other: list[float], name: str) -> str:
    """What one adds, in parts of what another adds: of medians, as a single round may add none."""
    least = statistics.median(other)
    if least <= 0:
        return f"{name} adds nothing that can be measured"
    return f"{statistics.median(one) / least:.2f} of what {name} adds"


# A program of its own


def _started(
    image: Path, command: list[str], folder: Path, losses: list[int]
) -> dict[str, Measure]:
    def ours(*options: str) -> Measure:
        trace = folder / "trace.parquet"
        tracing = [sys.executable, "-m", "qtrace", "run", "--force", "-o", str(trace), *options,
                   "--", *command]  # fmt: skip

        def measure() -> float:
            took = run_bench(tracing)
            losses.append(_lost(trace))
            return took

        return measure

    modes: dict[str, Measure] = {
        "nothing": lambda: run_bench(command),
        "watching": ours("-b", "job_exit"),
        "--all": ours("--all"),
        "the floor": lambda: _floor(image, command),
    }
    if shutil.which("bpftrace"):
        script = _script(image)
        wrapped = [*BPFTRACE, "-o", str(folder / "bpftrace"), "-e", script, "-c",
                   " ".join(command)]  # fmt: skip
        modes["bpftrace"] = lambda: run_bench(wrapped)
    if _perf_probes(image):
        events = [part for f in FIELDS for part in ("-e", f"qtrace_bench:{f}")]
        record = ["perf", "record", "-q", "-o", str(folder / "perf"), *events, "--", *command]
        modes["perf"] = lambda: _with_perf(image, lambda: run_bench(record))
    return modes


def _lost(trace: Path) -> int:
    """Events that a recording lost. Raises when it does not add up."""
    counts = read_trace(trace, only=()).detach.get("all")
    if counts is None:
        return 0
    if counts["produced"] != counts["written"] + counts["lost"]:
        raise RuntimeError(f"events are missing: {counts}")
    return int(counts["lost"])


def _script(image: Path, filter_pid: int | None = None) -> str:
    only = f"/pid == {filter_pid}/ " if filter_pid else ""
    sites = plan_all(Module(Elf(image), 0)).sites
    cancels = [f"{site.vaddr:#x}" for site in sites if site.kind == "cancel"]
    places = [*((f, f, fields) for f, fields in FIELDS.items()),
              *((place, "qemu_bh_cancel", CANCEL) for place in cancels)]  # fmt: skip
    probes = []
    for place, function, fields in places:
        form = " ".join(("%lld", function, "%d", *(form for form, _ in fields)))
        values = ", ".join(("nsecs", "tid", *(value for _, value in fields)))
        probes.append(f'uprobe:{image}:{place} {only}{{ printf("{form}\\n", {values}); }}')
    return " ".join(probes)


def _floor(image: Path, command: list[str]) -> float:
    """An empty program at the same sites."""
    read, write = os.pipe()
    child = Child(command, output_fd=write)
    os.close(write)
    with empty_probes(child.pid, child.path, Module(Elf(image), 0)):
        child.release()
        child.go()
        with os.fdopen(read) as output:
            text = output.read()
        child.wait()
    return seconds(text)


def empty_probes(pid: int, exe: str, module: Module) -> AbstractContextManager[None]:
    """The floor: an empty program at each site of `--all`."""
    return empty_at(pid, exe, module, {site.vaddr: site.where for site in plan_all(module).sites})


def _perf_probes(image: Path) -> bool:
    """Whether perf can set uprobes here."""
    if shutil.which("perf") is None:
        return False
    works = _perf("-x", str(image), "-a", f"qtrace_bench:aio_bh_call={next(iter(FIELDS))}")
    _perf("-d", "qtrace_bench:*")
    return works


def _perf(*arguments: str) -> bool:
    return subprocess.run(["perf", "probe", "-q", *arguments], capture_output=True).returncode == 0


def _with_perf(image: Path, measure: Measure) -> float:
    try:
        for name in FIELDS:
            _perf("-x", str(image), "-a", f"qtrace_bench:{name}={name}")
        return measure()
    finally:
        _perf("-d", "qtrace_bench:*")


# A daemon that runs already


def _attached(pid: int, command: list[str], folder: Path, losses: list[int]) -> dict[str, Measure]:
    process = Process(pid)
    image = Path(process.exe_path)

    def ours(*options: str) -> Measure:
        trace = folder / "trace.parquet"
        attach = [sys.executable, "-m", "qtrace", "attach", "--pid", str(pid), "--force",
                  "-o", str(trace), *options]  # fmt: skip

        def measure() -> float:
            with _tracing(attach, "recording"):
                took = run_bench(command)
            losses.append(_lost(trace))
            return took

        return measure

    def floor() -> float:
        with empty_probes(pid, process.exe, process.binary):
            return run_bench(command)

    modes: dict[str, Measure] = {
        "nothing": lambda: run_bench(command),
        "watching": ours("-b", "*"),
        "--all": ours("--all"),
        "the floor": floor,
    }
    if shutil.which("bpftrace"):
        # It says nothing when it is armed; its BEGIN runs before that.
        script = _script(image, pid) + ' interval:ms:100 { printf("armed\\n"); }'
        bpftrace = [*BPFTRACE, "-e", script]

        def theirs() -> float:
            with _tracing(bpftrace, "armed", stdout=True):
                return run_bench(command)

        modes["bpftrace"] = theirs
    return modes


@contextmanager
def _tracing(command: list[str], armed: str, stdout: bool = False) -> Iterator[None]:
    """A tracer that has said that it is armed; it is interrupted afterwards."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, text=True, stderr=subprocess.DEVNULL if stdout else subprocess.PIPE,
            stdout=subprocess.PIPE if stdout else output,
        )  # fmt: skip
        stream = process.stdout if stdout else process.stderr
        assert stream is not None
        try:
            while armed not in (line := stream.readline()):
                if not line:
                    raise RuntimeError(f"{command[0]} did not arm")
            sink = subprocess.Popen(["cat"], stdin=stream, stdout=subprocess.DEVNULL)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
            sink.wait()
