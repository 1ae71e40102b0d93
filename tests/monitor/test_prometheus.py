"""A real Prometheus scrapes ``qtrace monitor``, and the shipped rules fire during a real hang."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qtrace.lab.guest import find_qemu
from tests.limits import TIMEOUT_S
from tests.live.support.hung import hung_guest
from tests.live.support.monitored import monitor, scrape, until

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".cache/prometheus/usr/bin"
RULES = ROOT / "qtrace/monitor/assets/alerts.yml"
CONFIG = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: qtrace
    static_configs: [{{targets: ["{target}"]}}]
"""
pytestmark = [pytest.mark.qemu, pytest.mark.prometheus]


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
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def alerts(url: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/alerts", timeout=TIMEOUT_S) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["alerts"]
    except OSError:
        return []  # it has not begun to listen
    return found


def test_promtool_has_nothing_to_say_of_the_rules_and_of_the_metrics() -> None:
    assert "7 rules found" in promtool("check", "rules", RULES)
    with hung_guest(find_qemu(), "tcg"), monitor() as (_, url):
        text = until(lambda: t if "qtrace_loop_stuck_seconds{" in (t := scrape(url)) else "", "it")
    assert promtool("check", "metrics", text=text) == ""


def test_the_alert_of_a_main_loop_fires_while_it_is_stuck(tmp_path: Path) -> None:
    told = tmp_path / "told"
    act = f'echo "$QTRACE_PID|$QTRACE_VM" >> {told}'
    with (
        hung_guest(find_qemu(), "tcg") as guest,
        monitor("--on-finding", act) as (_, url),
        prometheus(url.split("/")[2], tmp_path) as server,
    ):

        def fired() -> str:
            lines = told.read_text().splitlines() if told.exists() else []
            vms = {line.split("|", 1)[1] for line in lines if line.startswith(f"{guest.pid}|")}
            firing = [one for one in alerts(server) if one["state"] == "firing"]
            summaries = [
                str(one["annotations"]["summary"])
                for one in firing
                if one["labels"]["alertname"] == "QemuMainLoopStuck" and one["labels"]["vm"] in vms
            ]
            return summaries[0] if summaries else ""

        assert " has not come back for " in until(fired, "the alert")
