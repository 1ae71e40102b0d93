"""The probes of ``qtrace monitor``: who has which rights, what is counted, who survives whom."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from qtrace.analysis import judge
from qtrace.host.uprobe_links import links_work
from qtrace.lab.guest import Guest, find_qemu
from qtrace.monitor.recorder import STUCK_S, Closing
from qtrace.trace.reader import read_trace
from tests.limits import TIMEOUT_S
from tests.live.support.attached import is_running, save
from tests.live.support.counted import own_copy
from tests.live.support.dead_fuse import locked_memory_map
from tests.live.support.monitored import monitor, parts, scrape, until, values

pytest.importorskip("prometheus_client")
pytestmark = [pytest.mark.bpf, pytest.mark.qemu]

CAPABILITIES = ("CapEff", "CapPrm", "CapInh", "CapAmb")
# CAP_DAC_READ_SEARCH, _SYS_PTRACE and _CHECKPOINT_RESTORE for looks, _BPF and _PERFMON for probes,
# _SETGID and _SETUID for a recorder that is begun again (linux/capability.h).
OF_THE_LOOKER = sum(1 << number for number in (2, 6, 7, 19, 38, 39, 40))
WATCHED = "snapshot_save_job_bh"


@contextmanager
def named_guest(
    name: str, firmware: str = "idle", *, extra: Sequence[str] = (), **options: int
) -> Iterator[Guest]:
    arguments = ("-name", name, *extra)
    with Guest(find_qemu(), firmware=firmware, extra_args=arguments, **options) as guest:  # type: ignore[arg-type]
        yield guest


def until_armed(url: str, name: str) -> str:
    def probes() -> str:
        found = values(scrape(url), "qtrace_vm_probes", name)
        return str(found[0]) if found and found[0] > 0 else ""

    return until(probes, "the probes")


def count(url: str, metric: str, name: str, label: str = "") -> float:
    lines = [line for line in scrape(url).splitlines() if f'vm="{name}"' in line and label in line]
    found = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{metric}{{")]
    return sum(map(float, found))


def rights(pid: int) -> tuple[set[str], int]:
    """The capabilities of all threads of a process together, and its descriptors of BPF."""
    held, links = set(), []
    # Threads and descriptors come and go.
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            status = (task / "status").read_text()
            fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
            held |= {fields[name].lstrip("0") for name in CAPABILITIES}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(fd))
    return held - {""}, sum(link.startswith("anon_inode:bpf") for link in links)


def test_who_loads_holds_the_capabilities_who_reads_descriptors_and_who_listens_nothing() -> None:
    with named_guest("three-parts"), monitor("--name", "three-parts") as (process, url):
        until_armed(url, "three-parts")
        pids = parts(process.pid)
        assert set(pids) == {"looker", "recorder", "listener"}
        if links_work():
            (held,) = rights(pids["looker"])[0]
            assert int(held, 16) == OF_THE_LOOKER
        for part in ("recorder", "listener"):
            status = Path(f"/proc/{pids[part]}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "Uid:\t65534\t65534\t65534\t65534" in status
        none, descriptors = rights(pids["recorder"])
        assert not none
        assert descriptors
        assert rights(pids["listener"]) == (set(), 0)


def test_a_command_for_findings_may_do_what_who_started_the_monitor_may(tmp_path: Path) -> None:
    told = tmp_path / "told"
    act = f'echo "$QTRACE_PID|$(grep CapEff /proc/self/status)" >> {told}'
    with (
        named_guest("ends-badly") as guest,
        monitor("--name", "ends-badly", "--on-finding", act) as (process, url),
    ):
        until_armed(url, "ends-badly")
        assert set(parts(process.pid)) == {"looker", "recorder", "listener", "commands"}
        os.kill(guest.pid, signal.SIGSEGV)
        own = f"{guest.pid}|CapEff:\t"

        def said() -> str:
            lines = told.read_text().splitlines() if told.exists() else []
            return next((line for line in lines if line.startswith(own)), "")

        held = int(until(said, "the finding").removeprefix(own), 16)
    mine = re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.M)
    assert mine
    assert held == int(mine[1], 16)


def test_a_guest_that_starts_is_armed_before_its_first_command(tmp_path: Path) -> None:
    path = tmp_path / "goes-on"
    # It starts, and waits there for whoever connects.
    waits = ("-chardev", f"socket,id=goes-on,path={path},server=on,wait=on")

    def go_on(url: str) -> None:
        until_armed(url, "starts")
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(path))

    with monitor("--name", "starts") as (_, url), ThreadPoolExecutor(1) as pool:
        gone_on = pool.submit(go_on, url)
        with named_guest("starts", extra=waits):
            gone_on.result()
            assert count(url, "qtrace_vm_armed_seconds", "starts") > 0

            def counted() -> str:
                label = 'command="qmp_capabilities"'
                return "x" if count(url, "qtrace_qmp_commands_total", "starts", label) else ""

            # The very first one: whoever was armed later has not seen it.
            until(counted, "the command")


def test_jobs_and_who_ran_a_watched_bottom_half_are_counted_and_a_vcpu_is_a_finding(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told"
    act = f'echo "$QTRACE_PID|$QTRACE_KIND|$QTRACE_SENTENCE" >> {told}'
    name = "runs-elsewhere"
    with (
        named_guest(name, "pflash", idle_sockets=200) as guest,
        monitor("--name", name, "--on-finding", act) as (_, url),
    ):
        until_armed(url, name)
        saved = 0

        def found() -> str:
            nonlocal saved
            save(guest, 10)
            saved += 10
            lines = told.read_text().splitlines() if told.exists() else []
            return next((x for x in lines if x.startswith(f"{guest.pid}|vcpu-poll|")), "")

        assert f"{WATCHED} was run by" in until(found, "the finding")

        def all_ran() -> str:
            ran = count(url, "qtrace_bottom_half_runs_total", name, f'bottom_half="{WATCHED}"')
            (lost,) = re.findall(r"^qtrace_probe_lost_total (\S+)$", scrape(url), re.M)
            assert ran <= saved
            return "x" if ran + float(lost) >= saved else ""

        until(all_ran, "all runs")
        assert count(url, "qtrace_bottom_half_runs_total", name, 'role="vcpu"') >= 1
        assert count(url, "qtrace_found_total", name, 'kind="vcpu-poll"') >= 1
        until(lambda: "x" if _concluded(url, name) >= saved else "", "the jobs")
        assert count(url, "qtrace_jobs", name, 'status="null"') == 0


def _concluded(url: str, name: str) -> float:
    return count(url, "qtrace_job_changes_total", name, 'status="concluded"')


def test_a_recorder_that_is_killed_is_begun_again_and_arms_all() -> None:
    with named_guest("armed-again") as guest, monitor("--name", "armed-again") as (process, url):
        until_armed(url, "armed-again")
        first = parts(process.pid)["recorder"]
        os.kill(first, signal.SIGKILL)
        until(lambda: "x" if parts(process.pid).get("recorder", first) != first else "", "another")

        def counted() -> str:
            guest.qmp.command("query-name")
            label = 'command="query-name"'
            return "x" if count(url, "qtrace_qmp_commands_total", "armed-again", label) else ""

        until(counted, "a command")


def test_a_monitor_that_is_killed_leaves_no_process_and_no_probe() -> None:
    with named_guest("outlives") as guest, monitor("--name", "outlives") as (process, url):
        until_armed(url, "outlives")
        others = [pid for part, pid in parts(process.pid).items() if part != "looker"]
        process.kill()
        process.wait(TIMEOUT_S)
        for pid in others:
            until(lambda pid=pid: "" if Path(f"/proc/{pid}").exists() else "gone", "its end")  # type: ignore[misc]
        assert guest.qmp.command("query-status")["running"]
        assert is_running(guest.pid)


def test_the_signal_that_ended_a_qemu_is_told_and_programs_are_counted(tmp_path: Path) -> None:
    told = tmp_path / "told"
    act = f'echo "$QTRACE_PID|$QTRACE_KIND|$QTRACE_SENTENCE" >> {told}'
    with monitor("--name", "crashes", "--on-finding", act) as (_, url):

        def started() -> float:
            (found,) = re.findall(r"^qtrace_programs_started_total (\S+)$", scrape(url), re.M)
            return float(found)

        until(lambda: "x" if "qtrace_programs_started_total" in scrape(url) else "", "a state")
        before = started()
        for _ in range(5):
            subprocess.run(["qemu-img", "--version"], check=True, stdout=subprocess.DEVNULL)
        until(lambda: "x" if started() >= before + 5 else "", "five more")
        with named_guest("crashes") as guest:
            until_armed(url, "crashes")
            os.kill(guest.pid, signal.SIGSEGV)

            def finding() -> str:
                lines = told.read_text().splitlines() if told.exists() else []
                return next((x for x in lines if x.startswith(f"{guest.pid}|crashed|")), "")

            assert "SIGSEGV" in until(finding, "the finding")


def test_a_crash_leaves_the_last_events_in_a_recording_that_every_command_reads(
    tmp_path: Path,
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    options = ("--name", "flies", "--flight", "30s", "--autopsies", files)
    with monitor(*options) as (_, url), named_guest("flies") as guest:
        until_armed(url, "flies")
        save(guest, 3)
        until(lambda: "x" if _concluded(url, "flies") >= 3 else "", "the jobs")
        os.kill(guest.pid, signal.SIGSEGV)

        def written() -> str:
            return next((str(f) for f in files.glob("*-flies.flight.csv")), "")

        path = Path(until(written, "the file"))
    trace = read_trace(path)
    assert trace.exit == {"signal": signal.SIGSEGV}
    events = trace.frame
    # However short they were.
    assert {"snapshot-save", "job-dismiss"} <= set(events["name"][events["event"] == "qmp"])
    runs = events[(events["event"] == "run") & (events["name"] == WATCHED)]
    assert len(runs) == 3
    assert all("aio_bh_poll" in stack for stack in runs["stack"])
    assert judge([path])["verdict"] == "main-loop"


@pytest.mark.fuse
def test_no_probe_is_taken_off_while_the_memory_map_of_a_qemu_is_locked(tmp_path: Path) -> None:
    """It would keep the whole host from starting processes."""
    # Of a file of its own: nobody's probes wait for it.
    copy = own_copy(find_qemu(), tmp_path)
    with locked_memory_map(copy, tmp_path) as (_, file), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Closing(list).wait)
        assert not wait([waiting], STUCK_S + 1).done
        file.thaw()
        waiting.result(TIMEOUT_S)
