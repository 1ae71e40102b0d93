"""A real Prometheus scrapes ``qtrace monitor``: the shipped rules fire during real hangs, and the
shipped dashboard has something to show."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import Guest, find_qemu
from tests.limits import TIMEOUT_S
from tests.live.support.attached import save
from tests.live.support.dead_fuse import locked_memory_map
from tests.live.support.monitored import monitor, scrape, until, values
from tests.live.support.stopped_thread import stopped_thread
from tests.monitor.hung_host import hung_host

# The guest that nobody looks at, and when that is so.
FORGOTTEN = "forgotten"
LATE_S = 5.0
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".cache/prometheus/usr/bin"
ASSETS = ROOT / "qtrace/monitor/assets"
RULES = ASSETS / "alerts.yml"
DASHBOARD = ASSETS / "dashboard.json"
CONFIG = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: qtrace
    static_configs: [{{targets: ["{target}"]}}]
"""
pytestmark = [pytest.mark.qemu, pytest.mark.fuse, pytest.mark.prometheus]


@dataclass(frozen=True)
class Observed:
    """A host with hung QEMUs, its monitor, and the Prometheus that scrapes it."""

    pids: dict[str, int]
    monitor: subprocess.Popen[str]
    metrics: str
    server: str

    def ask(self, what: str, **query: str) -> Any:
        """The data of an answer of Prometheus's."""
        address = f"{self.server}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        return said["data"]

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """Alerts that fire, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("hung")
    with (
        hung_host(folder) as pids,
        Guest(find_qemu(), firmware="idle", extra_args=("-name", FORGOTTEN)) as guest,
        monitor("--stats", "*") as (process, metrics),
        looked_at_no_more(process.pid, metrics, guest.pid),
        prometheus(metrics.split("/")[2], folder) as server,
    ):
        yield Observed(pids, process, metrics, server)


@contextmanager
def looked_at_no_more(monitor_pid: int, url: str, pid: int) -> Iterator[None]:
    """The thread that looks at one guest stands still, and all others go on."""

    def of(metric: str) -> float:
        return (values(scrape(url), metric, FORGOTTEN) or [0.0])[0]

    until(lambda: "x" if of("qtrace_looks_total") >= 2 else "", "looks")
    tasks = Path(f"/proc/{monitor_pid}/task")
    (tid,) = (int(t.name) for t in tasks.iterdir() if (t / "comm").read_text() == f"vm-{pid}\n")
    while True:
        with stopped_thread(tid):
            ends = time.monotonic() + 3 * LATE_S
            while time.monotonic() < ends and of("qtrace_look_age_seconds") < LATE_S:
                time.sleep(0.1)
            # It may have had what all threads of a Python share: then nothing is told any more.
            if of("qtrace_look_age_seconds") >= LATE_S:
                yield
                return


def promtool(*arguments: object, text: str = "") -> str:
    run = subprocess.run(
        [PROGRAMS / "promtool", *map(str, arguments)], input=text, text=True,
        capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """Where it answers."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(rules=RULES, target=target))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAMS / "prometheus", f"--config.file={config}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: "up" if is_ready(address) else "", "Prometheus")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def is_ready(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as said:
        return bool(said.status == 200)
    return False


def test_promtool_has_nothing_to_say_of_the_rules_and_of_the_metrics(observed: Observed) -> None:
    assert "11 rules found" in promtool("check", "rules", RULES)
    text = until(
        lambda: t if "qtrace_loop_stuck_seconds{" in (t := scrape(observed.metrics)) else "", "it"
    )
    assert promtool("check", "metrics", text=text) == ""


@pytest.mark.parametrize(
    ("alert", "said"),
    [
        ("QemuMainLoopStuck", "The main loop of qtrace-lab"),
        ("QemuIoThreadStuck", "(iothread:iot0) has not come back for "),
        ("QemuBqlConvoy", "Somebody in hangs has waited for the BQL for "),
        ("QemuRequestStuck", "Block requests of asks-for-ever at a nbd node are stuck"),
        ("QemuHeld", "is stopped by a signal or a tracer, or frozen"),
    ],
)
def test_each_rule_fires_during_a_real_hang(observed: Observed, alert: str, said: str) -> None:
    assert alert in observed.pids

    def summary() -> str:
        fired = observed.firing().get(alert, ())
        summaries = [str(one["annotations"]["summary"]) for one in fired]
        return next((text for text in summaries if said in text), "")

    assert until(summary, alert)


def test_a_snapshot_that_a_vcpu_runs_fires(observed: Observed) -> None:
    name = ("-name", "saves")
    with Guest(find_qemu(), firmware="pflash", idle_sockets=200, extra_args=name) as guest:
        until_seen(observed, 'qtrace_vm_probes{vm="saves"} > 0')

        def fired() -> str:
            save(guest, 10)
            # It fires for whoever did so before, too.
            return "x" if "'saves'" in str(observed.firing().get("QemuSnapshotOnVcpu")) else ""

        until(fired, "the alert")


def test_a_crash_fires(observed: Observed) -> None:
    with Guest(find_qemu(), firmware="idle", extra_args=("-name", "crashes")) as guest:
        until_seen(observed, 'qtrace_looks_total{vm="crashes"} > 0')
        os.kill(guest.pid, signal.SIGSEGV)
        until(lambda: "x" if "SIGSEGV" in str(observed.firing().get("QemuCrashed")) else "", "it")


@contextmanager
def waiting(observed: Observed, folder: Path) -> Iterator[None]:
    """A guest whose QMP command waits for somebody to read a pipe."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    name = ("-name", "waits")
    with (
        Guest(find_qemu(), firmware="idle", extra_args=name) as guest,
        socket.socket(socket.AF_UNIX) as qmp,
    ):
        until_seen(observed, 'qtrace_vm_probes{vm="waits"} > 0')
        qmp.connect(str(guest.second_qmp_socket))
        arguments = {"val": 0, "size": 1, "filename": str(pipe)}
        command = {"execute": "pmemsave", "arguments": arguments}
        qmp.sendall(b'{"execute": "qmp_capabilities"}' + json.dumps(command).encode())
        yield


def test_a_command_that_waits_fires(observed: Observed, tmp_path: Path) -> None:
    with waiting(observed, tmp_path):
        fired = until(lambda: str(observed.firing().get("QemuCommandWaits", "")), "the alert")
    assert "The QMP command pmemsave of waits has had no answer for " in fired


def until_seen(observed: Observed, query: str) -> None:
    """Until Prometheus has a value for it: of a first value it sees no increase."""
    until(lambda: observed.ask("query", query=query)["result"], query)


def test_each_query_of_the_dashboard_has_an_answer(observed: Observed, tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = {
        target["expr"]: panel["title"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    assert len(queries) >= len(dashboard["panels"])
    with waiting(observed, tmp_path), Guest(find_qemu(), firmware="idle") as guest:

        def answer(query: str) -> str:
            save(guest, 1)
            return str(observed.ask("query", query=query)["result"] or "")

        for expression, title in queries.items():
            # As Grafana does for "All".
            query = expression.replace("$vm", ".*")
            assert until(lambda query=query: answer(query), title)
    (variable,) = (v for v in dashboard["templating"]["list"] if v["type"] == "query")
    metric = variable["query"]["query"].removeprefix("label_values(").split(",")[0]
    assert observed.ask("query", query=metric)["result"]


def test_a_guest_about_which_not_even_the_kernel_answers_is_told(
    observed: Observed, tmp_path: Path
) -> None:
    with locked_memory_map(find_qemu(), tmp_path):
        assert until(lambda: "fires" if "QemuUnreadable" in observed.firing() else "", "the alert")


def test_a_guest_that_is_looked_at_no_more_is_told(observed: Observed) -> None:
    def age() -> str:
        (found,) = values(scrape(observed.metrics), "qtrace_look_age_seconds", FORGOTTEN)
        return str(found) if found > 60 else ""

    until(age, "half the time")
    fired = until(lambda: str(observed.firing().get("QtraceGuestNotLookedAt", "")), "the alert")
    assert f"qtrace monitor has not looked at {FORGOTTEN} for " in fired


def test_a_monitor_that_looks_no_more_is_told(observed: Observed) -> None:
    """Last: it does not look again."""
    observed.monitor.send_signal(signal.SIGSTOP)
    try:
        assert until(
            lambda: "fires" if "QtraceMonitorBlind" in observed.firing() else "", "the alert"
        )
    finally:
        observed.monitor.send_signal(signal.SIGCONT)
