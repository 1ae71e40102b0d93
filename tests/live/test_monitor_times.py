"""``qtrace monitor --stats``: every run of a bottom half is in the histograms, beside independent
counts: the kernel's own uprobe counters, and ``attach --all``."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qtrace.analysis import Trace
from qtrace.lab.guest import Accelerator, Guest, find_qemu
from qtrace.trace.reader import read_trace
from tests.live.support.attached import attached, save
from tests.live.support.counted import counting, own_copy
from tests.live.support.monitored import monitor, parts, scrape, until, values

pytest.importorskip("prometheus_client")
pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

NAME = "timed"
RUNS, WAITS = "qtrace_bottom_half_seconds", "qtrace_bottom_half_wait_seconds"
PROBES = "qtrace_vm_probes"
DISPATCH = "do_qmp_dispatch_bh"
SAVES, MANY_SAVES = 10, 300


class Told:
    """What a monitor tells of the guest ``NAME``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def of(self, metric: str, what: str) -> dict[str, float]:
        """``what``: ``count`` or ``sum``; by bottom half."""
        pattern = rf'^{metric}_{what}{{bottom_half="(\w+)",vm="{NAME}"}} (\S+)$'
        return {n: float(v) for n, v in re.findall(pattern, scrape(self._url), re.MULTILINE)}

    def settled(self) -> dict[str, float]:
        """How often each ran, when nothing runs any more."""
        before: dict[str, float] = {}

        def same() -> str:
            nonlocal before
            for _ in range(2):
                self.another()
            now = self.of(RUNS, "count")
            known, before = before, now
            return "x" if now and now == known else ""

        until(same, "an end of all runs")
        return before

    def another(self) -> None:
        """Wait for what is read next; it used some processor time."""
        known = self._cpu_s()
        until(lambda: "x" if self._cpu_s() != known else "", "another state")

    def _cpu_s(self) -> str:
        return str(re.findall(r"^qtrace_monitor_cpu_seconds_total (\S+)$", scrape(self._url), re.M))


def timed(qemu: Path, accel: Accelerator, folder: Path, saves: int) -> str:
    """A guest that saves so often; what was seen of it, for people."""
    copy = own_copy(qemu, folder)
    name = ("-name", NAME)
    trace = folder / "trace.parquet"
    with (
        Guest(copy, accel, firmware="idle", extra_args=name) as guest,
        monitor("--name", NAME, "--stats", "tim*") as (_, url),
    ):
        told = Told(url)
        # Timers of a guest that runs notify its main loop now and then.
        guest.qmp.command("stop")

        def is_timed() -> str:
            guest.qmp.command("query-status")
            return "x" if told.of(RUNS, "count") else ""

        until(is_timed, "a run")
        runs = Counter(told.settled())
        waits, ran_s = Counter(told.of(WAITS, "count")), sum(told.of(RUNS, "sum").values())
        waited_s = sum(told.of(WAITS, "sum").values())
        with counting(copy) as counts, attached(guest.pid, "--all", "-o", trace) as recording:
            save(guest, saves)
            recording.end()
        new = Counter(told.settled()) - runs
        new_waits = Counter(told.of(WAITS, "count")) - waits
        ran_s = sum(told.of(RUNS, "sum").values()) - ran_s
        waited_s = sum(told.of(WAITS, "sum").values()) - waited_s
        assert re.search(r"^qtrace_bottom_half_lost_total 0\.0$", scrape(url), re.MULTILINE)
    # The kernel's own count of all that ran.
    assert new.total() == counts["aio_bh_call"] > saves
    frame = Trace(read_trace(trace)).runs
    recorded = Counter(frame["name"].astype(str))
    assert {n: c for n, c in new.items() if n != "other"} == {
        n: c for n, c in recorded.items() if n in new
    }
    assert new["other"] == sum(c for n, c in recorded.items() if n not in new)
    # Of one whose run was noted before its schedule there is no wait.
    assert new_waits.total() >= 0.99 * new.total()
    assert new_waits.total() <= new.total()
    # The same moments, noted by another program a little before or after.
    took_s = float((frame["end_ns"] - frame["time_ns"]).sum()) / 1e9
    queued_s = float((frame["time_ns"] - frame["scheduled_ns"]).sum()) / 1e9
    most_s = new.total() * 20e-6 + 0.05 * took_s
    assert abs(ran_s - took_s) <= most_s
    assert abs(waited_s - queued_s) <= most_s + 0.05 * queued_s
    return f"{int(new.total())} runs of {len(new)} names, 0 missing"


def test_each_run_of_a_bottom_half_is_in_the_histograms(tmp_path: Path) -> None:
    timed(find_qemu(), "tcg", tmp_path, SAVES)


@pytest.mark.soak
def test_each_run_of_a_bottom_half_is_in_the_histograms_of_each_build(
    qemu_binary: Path, accel: Accelerator, tmp_path: Path, soak_row: Callable[..., None]
) -> None:
    seen = timed(qemu_binary, accel, tmp_path, MANY_SAVES)
    soak_row(f"{MANY_SAVES} saves under monitor --stats, each run counted", seen)


def test_only_guests_of_that_name_are_timed_and_one_that_ends_is_forgotten(tmp_path: Path) -> None:
    # Whatever others' QEMUs do: no probes are set in a file while the map of one of them is locked.
    copy = own_copy(find_qemu(), tmp_path)
    with (
        monitor("--name", NAME, "--name", "others", "--stats", NAME) as (_, url),
        Guest(copy, firmware="idle", extra_args=("-name", "others")) as other,
    ):
        told = Told(url)
        for _ in range(2):
            with Guest(copy, firmware="idle", extra_args=("-name", NAME)) as guest:

                def ran(guest: Guest = guest) -> str:
                    guest.qmp.command("query-status")
                    other.qmp.command("query-status")
                    return "x" if told.of(RUNS, "count").get(DISPATCH) else ""

                until(ran, "a run")
            until(lambda: "" if told.of(RUNS, "count") else "x", "its end")
        assert 'vm="others"' not in "".join(
            line for line in scrape(url).splitlines() if line.startswith("qtrace_bottom_half_")
        )


def test_what_had_begun_when_a_recorder_was_killed_is_not_timed_by_the_next(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        Guest(
            own_copy(find_qemu(), tmp_path), firmware="idle", extra_args=("-name", NAME)
        ) as guest,
        monitor("--name", NAME, "--stats", NAME) as (process, url),
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        told = Told(url)
        # Timers of a guest that runs notify its main loop now and then.
        guest.qmp.command("stop")

        def ran() -> float:
            guest.qmp.command("query-status")
            return told.of(RUNS, "count").get(DISPATCH, 0.0)

        until(lambda: "x" if ran() else "", "a run")
        places = values(scrape(url), PROBES, NAME)
        qmp.connect(str(guest.second_qmp_socket))
        arguments = {"val": 0, "size": 1, "filename": str(pipe)}
        command = {"execute": "pmemsave", "arguments": arguments}
        qmp.sendall(b'{"execute": "qmp_capabilities"}' + json.dumps(command).encode())
        # It waits inside of the bottom half, for somebody to read.
        wchan = Path(f"/proc/{guest.pid}/wchan")
        until(lambda: "x" if wchan.read_text() == "wait_for_partner" else "", "its wait")
        began = time.monotonic()
        first = parts(process.pid)["recorder"]
        os.kill(first, signal.SIGKILL)
        until(lambda: "x" if parts(process.pid).get("recorder", first) != first else "", "another")
        for _ in range(2):
            told.another()
        until(lambda: "x" if values(scrape(url), PROBES, NAME) == places else "", "its probes")
        lasted_s = time.monotonic() - began
        pipe.read_bytes()
        before = told.settled()[DISPATCH]
        until(lambda: "x" if ran() > before else "", "a run that is timed")
        assert told.of(RUNS, "sum")[DISPATCH] < lasted_s
