"""The shipped unit, run by a real systemd as the first process of a machine."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

from qtrace.lab.guest import find_qemu
from qtrace.process.qmp_client import QmpClient
from tests.limits import TIMEOUT_S
from tests.live.support.hung import ARGUMENTS, JOB
from tests.live.support.monitored import scrape, until, values
from tests.monitor.booted import CHECKOUT, Booted, booted, in_machine

pytestmark = [pytest.mark.qemu, pytest.mark.nspawn]

SHIPPED = (resources.files("qtrace.monitor") / "assets/qtrace-monitor.service").read_text()
UNIT = "qtrace-monitor.service"
VM = "booted-guest"
# The highest exposure of 100 that `systemd-analyze security` may find.
EXPOSURE = 20
# As `systemctl edit` would: this checkout, whose Python may be in a home; a short watchdog.
EDITED = """\
[Service]
ExecStart=
ExecStart={python} -m qtrace monitor --listen 127.0.0.1:{port} --autopsies /var/lib/qtrace
Environment=PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
ProtectHome=read-only
WatchdogSec=8
"""
# Of another user than the monitor's.
GUEST = """\
[Service]
User=nobody
KillSignal=SIGKILL
ExecStart={qemu} -name {vm},debug-threads=on -accel tcg,tb-size=1 -m 16 -nodefaults -display none \
  -qmp unix:/shared/qmp,server=on,wait=off -qmp unix:/shared/free,server=on,wait=off {arguments}
"""
TARGET = """\
[Unit]
Wants=qtrace-monitor.service
Requires=guest.service systemd-journald.service
After=qtrace-monitor.service guest.service systemd-journald.service
"""


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def machine(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    edited = EDITED.format(python=in_machine(Path(sys.executable)), port=port, root=CHECKOUT)
    guest = GUEST.format(qemu=find_qemu(), vm=VM, arguments=" ".join(ARGUMENTS))
    units = {
        UNIT: SHIPPED, f"{UNIT}.d/edited.conf": edited, "guest.service": guest,
        "up.target": TARGET,
    }  # fmt: skip
    with booted(tmp_path_factory.mktemp("systemd"), units) as machine:
        yield machine


@pytest.fixture
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/metrics"


def looks_at_guest(url: str) -> str:
    """Its looks at the guest, once there are some."""

    def looks() -> str:
        try:
            found = values(scrape(url), "qtrace_looks_total", VM)
        except OSError:
            return ""  # it does not listen yet
        return str(found[0]) if found and found[0] else ""

    return until(looks, "a look at the guest")


def main_pid(machine: Booted) -> str:
    """Of the monitor, which must run: kill(1) takes 0 for whoever calls it, and all of his."""
    pid = machine.show(UNIT, "MainPID")
    assert int(pid) > 0, machine.journal("-u", UNIT)
    return pid


def test_the_shipped_unit_is_right_and_hardly_exposed(tmp_path: Path) -> None:
    (tmp_path / UNIT).write_text(re.sub("ExecStart=.*", "ExecStart=/bin/true", SHIPPED))
    for check in (["verify"], ["security", "--offline=yes", f"--threshold={EXPOSURE}"]):
        run = subprocess.run(
            ["systemd-analyze", *check, f"./{UNIT}"],
            cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr


def test_it_is_ready_keeps_the_watchdog_and_sees_another_users_guest(
    machine: Booted, url: str
) -> None:
    assert machine.show(UNIT, "ActiveState") == "active", machine.run("journalctl", "-u", UNIT)
    assert machine.show(UNIT, "Type") == "notify"
    looks_at_guest(url)
    status = machine.run("cat", f"/proc/{main_pid(machine)}/status")
    fields = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))
    # Of no user that owns anything, with what looks need and nothing else.
    assert int(fields["Uid"].split()[0]) >= 61184  # systemd's dynamic users
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert fields["CapEff"] == fields["CapBnd"]
    # Twice the watchdog's time, in its own steps.
    for _ in range(20):
        before = machine.show(UNIT, "WatchdogTimestampMonotonic")
        until(
            lambda before=before: machine.show(UNIT, "WatchdogTimestampMonotonic").replace(
                before, ""
            ),
            "the watchdog",
        )
    assert machine.show(UNIT, "NRestarts") == "0"


@pytest.mark.bpf
def test_it_may_set_its_probes(machine: Booted, url: str) -> None:
    assert looks_at_guest(url)

    def armed() -> str:
        found = values(scrape(url), "qtrace_vm_probes", VM)
        return str(found) if found and found[0] else ""

    until(armed, "the probes")
    assert "qtrace_probes_up 1.0" in scrape(url)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_it_comes_back_when_it_is_killed_or_does_not_answer(
    machine: Booted, url: str, number: signal.Signals
) -> None:
    before, restarts = main_pid(machine), int(machine.show(UNIT, "NRestarts"))
    guest = machine.show("guest.service", "MainPID")
    machine.run("kill", f"-{number.name.removeprefix('SIG')}", before)
    until(lambda: "again" if int(machine.show(UNIT, "NRestarts")) > restarts else "", "the restart")
    until(lambda: "up" if machine.show(UNIT, "ActiveState") == "active" else "", "the monitor")
    looks_at_guest(url)
    assert main_pid(machine) != before
    assert machine.show("guest.service", "MainPID") == guest


def test_a_hang_is_in_the_journal_with_its_fields_and_an_autopsy_is_kept(
    machine: Booted, url: str
) -> None:
    looks_at_guest(url)

    def message() -> str:
        lines = machine.journal(f"QTRACE_VM={VM}").splitlines()
        return next((line for line in lines if '"stuck"' in line), "")

    with hanging(machine.shared):
        entry = json.loads(until(message, "the message"))
        assert entry["QTRACE_KIND"] == "stuck"
        assert "bdrv_drain" in entry["QTRACE_SENTENCE"]
        assert entry["PRIORITY"] == "3"
        assert entry["QTRACE_PID"] == machine.show("guest.service", "MainPID")
        assert entry["_SYSTEMD_UNIT"] == UNIT
        name = Path(entry["QTRACE_AUTOPSY"]).name
        until(lambda: machine.run("find", "/var/lib/qtrace/", "-name", name), "the autopsy")
        assert values(scrape(url), "qtrace_main_loop_stuck_seconds", VM)[0] > 0


def test_it_stops_in_good_order_and_the_guest_goes_on(machine: Booted) -> None:
    guest = machine.show("guest.service", "MainPID")
    machine.run("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "ActiveState") == "inactive"
    assert machine.show(UNIT, "Result") == "success"
    assert machine.show(UNIT, "ExecMainStatus") == "0"
    assert machine.show("guest.service", "MainPID") == guest
    assert machine.show("guest.service", "ActiveState") == "active"


@contextmanager
def hanging(shared: Path) -> Iterator[None]:
    """As ``hung_guest``: it quits while a job sleeps, and drains it for ever."""
    with QmpClient(shared / "qmp", TIMEOUT_S) as qmp, socket.socket(socket.AF_UNIX) as free:
        qmp.command(
            "human-monitor-command", **{"command-line": 'qemu-io target "break write_aio A"'}
        )
        qmp.command(
            "blockdev-backup",
            **{"job-id": JOB, "device": "source", "target": "target", "sync": "full"},
        )
        # Not by a client that waits: QEMU hangs before or after it has answered.
        free.connect(str(shared / "free"))
        free.sendall(b'{"execute": "qmp_capabilities"} {"execute": "quit"}')
        yield
