"""Looking at the block layer of a live QEMU: what one look costs, with layouts cached."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.pairs import Row, qemus
from qtrace.inspection.looker import Looker
from qtrace.inspection.qemu import LiveQemu
from qtrace.inspection.request_look import Requests
from qtrace.lab.guest import Guest
from qtrace.process.process import Process

DISKS = 10
DEPTHS = (1_000, 10_000)
# Each request takes longer than the benchmark.
SLOW = '{"driver": "null-co", "size": 68719476736, "latency-ns": 3600000000000}'
STARTS, LOOKS = 3, 7
LIMIT_S = 120
GOALS = {0: "at most 50 ms of CPU", 1_000: "at most 250 ms of CPU", 10_000: "-"}


def run(_pairs: int) -> list[Row]:
    """One look at threads, contexts, nodes, requests and coroutines: the first, and later ones."""
    rows = []
    for version, qemu in qemus():
        disks = [
            part
            for n in range(DISKS)
            for part in ("-blockdev", f"null-co,node-name=n{n},size=1048576,read-zeroes=on",
                         "-device", f"virtio-blk-pci,drive=n{n},id=v{n}")
        ]  # fmt: skip
        with Guest(qemu, "tcg", "idle", extra_args=disks) as guest:
            rows.append(_row(f"{version}: a healthy guest with {DISKS} disks", guest.pid, GOALS[0]))
        for depth in DEPTHS:
            with _bench(str(qemu.with_name("qemu-img")), depth) as pid:
                name = f"{version}: qemu-img with {depth:,} requests in as many coroutines"
                rows.append(_row(name, pid, GOALS[depth]))
    return rows


def _row(name: str, pid: int, goal: str) -> Row:
    first, later, elapsed = [], [], []
    for _ in range(STARTS):
        looker = Looker(LiveQemu(Process(pid)))
        requests = Requests(looker)
        first.append(_cpu_ms(requests))
    for _ in range(LOOKS):
        began = time.perf_counter()
        later.append(_cpu_ms(requests))
        elapsed.append((time.perf_counter() - began) * 1e3)
    look = requests.look()
    coroutines = look.blocks.coroutines or ()
    beside = (
        f"{len(look.blocks.nodes or ())} nodes, {len(look.blocks.requests):,} requests, "
        f"{len(coroutines):,} coroutines and {look.blocks.free} free"
    )
    return (
        f"{name}: one look",
        f"{statistics.median(later):.1f} ms of CPU ({statistics.median(elapsed):.1f} ms in all; "
        f"medians of {LOOKS}), the first one {statistics.median(first):.1f} ms",
        "-", beside, goal,
    )  # fmt: skip


def _cpu_ms(requests: Requests) -> float:
    began = time.process_time()
    requests.look()
    return (time.process_time() - began) * 1e3


@contextmanager
def _bench(program: str, depth: int) -> Iterator[int]:
    """A qemu-img that has so many requests in flight."""
    command = [program, "bench", "-c", "1000000", "-d", str(depth), f"json:{SLOW}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            requests = Requests(Looker(LiveQemu(Process(process.pid))))
            deadline = time.monotonic() + LIMIT_S
            while len(requests.look().blocks.requests) < depth:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{program} has not {depth} requests in {LIMIT_S} s")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.kill()
