"""What `--all` adds to qemu-img bench, beside the floor and what one would use instead.

All figures are times that are added to the same work with nothing attached, in rounds of one
run of each, in random order. The floor is an empty BPF program at the very sites of `--all`.
bpftrace and perf sit at the entries of the same functions, and cannot see ends (and not
qemu_bh_cancel(), whose first instruction takes no probe).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.pairs import Row, qemus
from benchmarks.watching import storage_daemon
from qtrace.recorder.bcc_module import load_bcc
from qtrace.recorder.child import Child
from qtrace.recorder.uprobes import Uprobes, links_work
from qtrace.target.all_sites import plan_all
from qtrace.target.bpf import SMALLEST_PROGRAM, TRACE_UPROBE_MULTI, load_program
from qtrace.target.elf import Elf
from qtrace.target.maps import Module
from qtrace.target.process import Process

REQUESTS = 200_000
DAEMON_REQUESTS = 50_000
ROUNDS = 5
GROWTH = (200_000, 2_000_000)
TOOK = re.compile(r"Run completed in ([\d.]+) seconds")

# The fields of --all, as bpftrace can get them. A QEMUBH is {ctx, name, cb, opaque, ...}.
BH = "*(uint64 *)arg0, str(*(uint64 *)(arg0 + 8)), *(uint64 *)(arg0 + 16), *(uint64 *)(arg0 + 24)"
BPFTRACE = {
    "aio_bh_call": f'printf("%lld run %d %p %p %s %p %p\\n", nsecs, tid, arg0, {BH});',
    "qemu_bh_schedule": f'printf("%lld schedule %d %p %p %s %p %p\\n", nsecs, tid, arg0, {BH});',
    "aio_bh_schedule_oneshot_full":
        'printf("%lld schedule %d %p %s %p %p\\n", nsecs, tid, arg0, str(arg3), arg1, arg2);',
    "aio_co_schedule": 'printf("%lld co %d %p %p\\n", nsecs, tid, arg0, arg1);',
}  # fmt: skip
Measure = Callable[[], float]


def run(pairs: int) -> list[Row]:
    """``pairs`` beyond 100 add rounds in proportion."""
    rounds = max(ROUNDS * pairs // 100, 3)
    rows: list[Row] = []
    for version, qemu in qemus():
        image = qemu.with_name("qemu-img")
        with tempfile.TemporaryDirectory() as folder:
            disk = _disk(Path(folder))
            for name, options in (("thread pool", ()), ("native aio", ("-n",))):
                command = _bench(image, str(disk), REQUESTS, *options)
                modes = _started(image, command, Path(folder))
                rows += _rows(f"{version}: qemu-img bench, {name}", modes, rounds)
        iothread = not version.startswith("7.")
        with storage_daemon(qemu.with_name("qemu-storage-daemon"), iothread) as (pid, url):
            command = _bench(image, url, DAEMON_REQUESTS)
            with tempfile.TemporaryDirectory() as folder:
                modes = _attached(pid, command, Path(folder))
                what = "storage daemon, IOThread" if iothread else "storage daemon"
                rows += _rows(f"{version}: {what}", modes, rounds)
    rows += _growth()
    return rows


def _disk(folder: Path) -> Path:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    return disk


def _bench(image: Path, file: str, requests: int, *options: str) -> list[str]:
    return [str(image), "bench", "-f", "raw", "-t", "none", *options, "-c", str(requests),
            "-d", "32", "-s", "4096", file]  # fmt: skip


def _rows(name: str, modes: dict[str, Measure], rounds: int) -> list[Row]:
    """A row for each mode: what it adds to ``nothing``, in medians of one round's ratios."""
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
                f"{_ratio(added[mode], added[other]):.2f} of what {other} adds"
                for other in ("bpftrace", "perf", "the floor")
                if other in added
            ]
            beside, goal = ", ".join(parts), "0.1 of bpftrace, 2 of the floor"
        rows.append((f"{name}: {mode}", f"{statistics.median(times):.2f} s", f"{ratio:.2f}",
                     beside, goal))  # fmt: skip
    return rows


def _ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / max(b, 1e-6) for a, b in zip(one, other, strict=True))


# A program of its own


def _started(image: Path, command: list[str], folder: Path) -> dict[str, Measure]:
    def ours(*options: str) -> Measure:
        trace = folder / "trace.parquet"
        return lambda: _took(
            [sys.executable, "-m", "qtrace", "run", "--force", "-o", str(trace), *options, "--",
             *command], trace if "--all" in options else None,
        )  # fmt: skip

    modes: dict[str, Measure] = {
        "nothing": lambda: _took(command),
        "watching": ours("-b", "job_exit"),
        "--all": ours("--all"),
        "the floor": lambda: _floor(image, command),
    }
    if shutil.which("bpftrace"):
        script = _script(image)
        wrapped = ["bpftrace", "-o", str(folder / "bpftrace"), "-e", script, "-c",
                   " ".join(command)]  # fmt: skip
        modes["bpftrace"] = lambda: _took(wrapped)
    if _perf_probes(image):
        events = [part for f in BPFTRACE for part in ("-e", f"qtrace_bench:{f}")]
        record = ["perf", "record", "-q", "-o", str(folder / "perf"), *events, "--", *command]
        modes["perf"] = lambda: _with_perf(image, lambda: _took(record))
    return modes


def _took(command: list[str], trace: Path | None = None) -> float:
    """What qemu-img says it took. Raises when --all lost an event."""
    run = subprocess.run(command, capture_output=True, text=True)
    found = TOOK.search(run.stdout)
    if found is None:
        raise RuntimeError(run.stdout + run.stderr)
    if trace is not None:
        _check_losses(trace)
    return float(found[1])


def _check_losses(trace: Path) -> None:
    from qtrace.trace.reader import read_trace

    counts = read_trace(trace, only=()).detach["all"]
    if counts["lost"] or counts["produced"] != counts["written"]:
        print(f"lost: {counts}", file=sys.stderr)


def _script(image: Path, filter_pid: int | None = None) -> str:
    only = f"/pid == {filter_pid}/ " if filter_pid else ""
    return " ".join(f"uprobe:{image}:{name} {only}{{ {code} }}" for name, code in BPFTRACE.items())


def _floor(image: Path, command: list[str]) -> float:
    """An empty program at the same sites."""
    read, write = os.pipe()
    child = Child(command, output_fd=write)
    os.close(write)
    with _empty_probes(child.pid, child.path, Module(Elf(image), 0)):
        child.release()
        child.go()
        with os.fdopen(read) as output:
            text = output.read()
        child.wait()
    found = TOOK.search(text)
    if found is None:
        raise RuntimeError(text)
    return float(found[1])


@contextmanager
def _empty_probes(pid: int, exe: str, module: Module) -> Iterator[None]:
    empty = load_program(SMALLEST_PROGRAM, "empty", TRACE_UPROBE_MULTI if links_work() else 0)
    uprobes = Uprobes(load_bcc().lib, pid, exe, module.elf.offset_of)
    try:
        uprobes.attach(empty, {site.vaddr: site.where for site in plan_all(module).sites})
        yield
    finally:
        uprobes.close()
        os.close(empty)


def _perf_probes(image: Path) -> bool:
    """Whether perf can set uprobes here."""
    if shutil.which("perf") is None:
        return False
    works = _perf("-x", str(image), "-a", f"qtrace_bench:aio_bh_call={next(iter(BPFTRACE))}")
    _perf("-d", "qtrace_bench:*")
    return works


def _perf(*arguments: str) -> bool:
    return subprocess.run(["perf", "probe", "-q", *arguments], capture_output=True).returncode == 0


def _with_perf(image: Path, measure: Measure) -> float:
    try:
        for name in BPFTRACE:
            _perf("-x", str(image), "-a", f"qtrace_bench:{name}={name}")
        return measure()
    finally:
        _perf("-d", "qtrace_bench:*")


# A daemon that runs already


def _attached(pid: int, command: list[str], folder: Path) -> dict[str, Measure]:
    process = Process(pid)
    image = Path(process.exe_path)

    def ours(*options: str) -> Measure:
        trace = folder / "trace.parquet"
        attach = [sys.executable, "-m", "qtrace", "attach", "--pid", str(pid), "--force",
                  "-o", str(trace), *options]  # fmt: skip

        def measure() -> float:
            with _beside(attach, "recording"):
                took = _took(command)
            if "--all" in options:
                _check_losses(trace)
            return took

        return measure

    def floor() -> float:
        with _empty_probes(pid, process.exe, process.binary):
            return _took(command)

    modes: dict[str, Measure] = {
        "nothing": lambda: _took(command),
        "watching": ours("-b", "*"),
        "--all": ours("--all"),
        "the floor": floor,
    }
    if shutil.which("bpftrace"):
        # It says nothing when it is armed; its BEGIN runs before that.
        script = _script(image, pid) + ' interval:ms:100 { printf("armed\\n"); }'
        bpftrace = ["bpftrace", "-e", script]

        def theirs() -> float:
            with _beside(bpftrace, "armed", stdout=True):
                return _took(command)

        modes["bpftrace"] = theirs
    return modes


@contextmanager
def _beside(command: list[str], armed: str, stdout: bool = False) -> Iterator[None]:
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


# From one million events to ten


def _growth() -> list[Row]:
    """Cost per event at 1 and at 10 million events: the target's, the recorder's, the rows'."""
    _version, qemu = qemus()[0]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        disk = _disk(Path(folder))
        for requests in GROWTH:
            command = _bench(qemu.with_name("qemu-img"), str(disk), requests, "-n")
            bare = _took(command)
            text = subprocess.run(
                [sys.executable, "-m", "benchmarks.all_events", folder, *command],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            facts = json.loads(text.splitlines()[-1])
            events = facts["events"]
            per_event = (facts["took"] - bare) / events
            rows.append(
                (
                    f"{events / 1e6:.1f} million events, {facts['lost']} lost",
                    f"{per_event * 1e6:.2f} us each for the target",
                    "-",
                    f"recorder {facts['cpu'] / events * 1e6:.2f} us of CPU each, "
                    f"{facts['cpu'] / facts['took']:.0%} of a core, {facts['rss_mb']:.0f} MB; "
                    f"rows {facts['convert'] / events * 1e6:.2f} us each, "
                    f"then {facts['rss_converted_mb']:.0f} MB",
                    "flat; under 200 MB, under one core",
                )
            )
    return rows


def _record(folder: Path, command: list[str]) -> None:
    """In a process of its own: record one command, print what that took as JSON."""
    import resource
    import time

    from qtrace.recorder.launch import launch
    from qtrace.trace.convert import convert

    raw, output = folder / "growth.raw", folder / "output"
    fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    recording, child = launch(command, output=raw, force=True, everything=True, output_fd=fd)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    began = usage.ru_utime + usage.ru_stime
    with recording:
        while not recording.ended:
            recording.poll(0.1)
        recording.stop("target exited")
    child.wait()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    assert recording.everything is not None
    counts = recording.everything.counts
    clock = time.monotonic()
    convert(raw, folder / "growth.parquet", force=True)
    found = TOOK.search(output.read_text())
    assert found is not None
    print(
        json.dumps(
            {
                "events": counts.produced,
                "lost": counts.lost,
                "took": float(found[1]),
                "cpu": usage.ru_utime + usage.ru_stime - began,
                "rss_mb": usage.ru_maxrss / 1024,
                "convert": time.monotonic() - clock,
                "rss_converted_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    _record(Path(sys.argv[1]), sys.argv[2:])
