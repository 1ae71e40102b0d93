"""``qtrace monitor`` on live QEMUs: a hang is in the metrics while it lasts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S
from tests.live.support.hung import hung_guest
from tests.live.support.monitored import monitor, scrape, until, values

pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.qemu


def test_a_hang_is_told_while_it_lasts_and_a_command_is_run_for_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    act = f'echo "$QTRACE_PID|$QTRACE_KIND|$QTRACE_VM|$QTRACE_SENTENCE" >> {told}'

    def own() -> str:
        # Other QEMUs of this host may hang, too.
        lines = told.read_text().splitlines() if told.exists() else []
        return next((line for line in lines if line.startswith(f"{guest.pid}|stuck|")), "")

    with hung_guest(find_qemu(), "tcg") as guest, monitor("--on-finding", act) as (_, url):
        _pid, _kind, vm, sentence = until(own, "the finding").split("|", 3)
        assert "bdrv_drain" in sentence

        def seconds() -> str:
            found = values(scrape(url), "qtrace_main_loop_stuck_seconds", vm)
            return str(found[0]) if found and found[0] > 0 else ""

        assert float(until(seconds, "the metric")) > 0
        assert values(scrape(url), "qtrace_findings", vm)
        assert Process(guest.pid).vm_name() in vm


def test_who_listens_has_no_rights_and_ends_with_the_monitor() -> None:
    with Guest(find_qemu(), firmware="idle") as guest, monitor() as (process, url):
        until(lambda: scrape(url) if "qtrace_looks_total" in scrape(url) else "", "a look")
        (listener,) = children(process.pid)
        status = Path(f"/proc/{listener}/status").read_text()
        fields = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))
        assert {fields[name].strip("0") for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {
            ""
        }
        assert fields["NoNewPrivs"] == "1"
        assert set(fields["Uid"].split()) == {"65534"}
        assert fields["Groups"] == ""
        process.terminate()
        process.wait(TIMEOUT_S)
        assert process.returncode == 0
        until(lambda: "" if Path(f"/proc/{listener}").exists() else "gone", "the listener's end")
        assert guest.qmp.command("query-status")["running"]


def test_a_guest_that_starts_and_ends_comes_and_goes() -> None:
    with monitor() as (_, url):
        with Guest(find_qemu(), firmware="idle", extra_args=("-name", "comes-and-goes")):
            until(lambda: "x" if values(scrape(url), "qtrace_looks_total", NAME) else "", "it")
        until(lambda: "" if values(scrape(url), "qtrace_looks_total", NAME) else "x", "its end")


NAME = "comes-and-goes"


def test_a_port_in_use_is_two_lines_and_status_3() -> None:
    with monitor() as (_, url):
        port = url.split(":")[2].split("/")[0]
        run = subprocess.run(
            [sys.executable, "-m", "qtrace", "monitor", "--listen", f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    assert run.returncode == 3
    assert re.fullmatch(
        rf"error: cannot listen on 127\.0\.0\.1:{port}: .*in use.*\nremedy: .*\n", run.stderr
    )


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
