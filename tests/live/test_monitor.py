"""``qtrace monitor`` on live QEMUs: a hang is in the metrics while it lasts."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from qtrace.lab.guest import Guest, find_qemu
from qtrace.process.process import Process
from tests.limits import TIMEOUT_S
from tests.live.support.hung import hung_guest
from tests.live.support.monitored import monitor, parts, scrape, until, values

pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.qemu


def test_a_hang_is_told_while_it_lasts_and_a_command_is_run_for_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    act = f'echo "$QTRACE_PID|$QTRACE_KIND|$QTRACE_VM|$QTRACE_SENTENCE" >> {told}'

    def own() -> str:
        # Other QEMUs of this host may hang, too.
        lines = told.read_text().splitlines() if told.exists() else []
        return next((line for line in lines if line.startswith(f"{guest.pid}|stuck|")), "")

    with (
        hung_guest(find_qemu(), "tcg") as guest,
        monitor("--looks-only", "--on-finding", act) as (_, url),
    ):
        _pid, _kind, vm, sentence = until(own, "the finding").split("|", 3)
        assert "bdrv_drain" in sentence

        def seconds() -> str:
            found = values(scrape(url), "qtrace_main_loop_stuck_seconds", vm)
            return str(found[0]) if found and found[0] > 0 else ""

        assert float(until(seconds, "the metric")) > 0
        assert values(scrape(url), "qtrace_findings", vm)
        assert Process(guest.pid).vm_name() in vm


def test_who_listens_has_no_rights_and_ends_with_the_monitor() -> None:
    with Guest(find_qemu(), firmware="idle") as guest, monitor("--looks-only") as (process, url):
        until(lambda: scrape(url) if "qtrace_looks_total" in scrape(url) else "", "a look")
        listener = parts(process.pid)["listener"]
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
    with monitor("--looks-only") as (_, url):
        with Guest(find_qemu(), firmware="idle", extra_args=("-name", "comes-and-goes")):
            until(lambda: "x" if values(scrape(url), "qtrace_looks_total", NAME) else "", "it")
        until(lambda: "" if values(scrape(url), "qtrace_looks_total", NAME) else "x", "its end")


NAME = "comes-and-goes"


def test_a_port_in_use_is_two_lines_and_status_3() -> None:
    with monitor("--looks-only") as (_, url):
        port = url.split(":")[2].split("/")[0]
        run = subprocess.run(
            [sys.executable, "-m", "qtrace", "monitor", "--listen", f"127.0.0.1:{port}"],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    assert run.returncode == 3
    assert re.fullmatch(
        rf"error: cannot listen on 127\.0\.0\.1:{port}: .*in use.*\nremedy: .*\n", run.stderr
    )


def test_a_monitor_whose_lines_nobody_reads_goes_on() -> None:
    name = "nobody-reads"
    with monitor("--looks-only", "--name", name) as (process, url):
        # As whoever starts it and never reads: the pipe is full.
        fd = os.open(f"/proc/{process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(fd, bytes(select.PIPE_BUF))
        os.close(fd)
        with hung_guest(find_qemu(), "tcg", ("-name", name)):
            until(lambda: "x" if "qtrace_findings{" in scrape(url) else "", "the finding")
        # And its end: the loop that says the finding goes on behind it.
        until(lambda: "" if "qtrace_findings{" in scrape(url) else "x", "the guest's end")
        process.terminate()
        assert process.stderr is not None
        assert ": stuck: " in process.stderr.read()
        assert process.wait(TIMEOUT_S) == 0


def test_without_room_for_an_autopsy_it_is_said_once_and_the_hang_is_told(tmp_path: Path) -> None:
    """A disk of less than what is to stay free."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        with (
            hung_guest(find_qemu(), "tcg") as guest,
            monitor("--looks-only", "--autopsies", tmp_path) as (process, url),
        ):
            until(lambda: "x" if "qtrace_findings{" in scrape(url) else "", "the finding")
            stderr = process.stderr
            assert stderr is not None
            lines = iter(stderr.readline, "")
            assert next(line for line in lines if f"(pid {guest.pid}): stuck: " in line)
            warning = next(line for line in lines if line.startswith("warning: "))
            assert re.fullmatch(
                rf"warning: no autopsy of .*: less than 64 MiB are free in {tmp_path}\n", warning
            )
            assert next(lines).startswith("remedy: make room there")
            assert not list(tmp_path.iterdir())
            assert values(scrape(url), "qtrace_main_loop_stuck_seconds", "qtrace-lab")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_monitors_see_the_same_guest_and_each_other_not() -> None:
    name = ("-name", "seen-by-two")
    with (
        Guest(find_qemu(), firmware="idle", extra_args=name) as guest,
        monitor("--looks-only") as (_, one), monitor("--looks-only") as (_, two),
    ):  # fmt: skip
        for url in (one, two):
            until(
                lambda url=url: str(values(scrape(url), "qtrace_looks_total", "seen-by-two") or ""),
                "a look",
            )
        assert guest.qmp.command("query-status")["running"]


def test_a_guest_in_namespaces_of_its_own_is_seen() -> None:
    qemu = [
        find_qemu(), "-S", "-name", "elsewhere,debug-threads=on", "-accel", "tcg", "-m", "16",
        "-nodefaults", "-display", "none",
    ]  # fmt: skip
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc"]
    with monitor("--looks-only") as (_, url):
        guest = subprocess.Popen([*apart, *qemu])
        try:
            until(
                lambda: str(values(scrape(url), "qtrace_looks_total", "elsewhere") or ""), "a look"
            )
            until(
                lambda: (
                    "0"
                    if values(scrape(url), "qtrace_main_loop_stuck_seconds", "elsewhere") == [0.0]
                    else ""
                ),
                "the main loop that comes back",
            )
        finally:
            guest.kill()
            guest.wait()


# As many in a few seconds as a busy host starts in a minute.
SHORT_LIVED = 120


def test_programs_that_end_while_they_are_looked_at_are_no_trouble() -> None:
    name = ("-name", "stays")
    with (
        Guest(find_qemu(), firmware="idle", extra_args=name),
        monitor("--looks-only") as (process, url),
    ):
        looks = lambda: values(scrape(url), "qtrace_looks_total", "stays")  # noqa: E731
        until(lambda: str(looks() or ""), "a look")
        before = looks()[0]
        for number in range(SHORT_LIVED):
            program = find_qemu() if number % 4 == 0 else find_qemu().with_name("qemu-img")
            subprocess.run([program, "--version"], check=True, capture_output=True)
        until(lambda: "x" if looks()[0] > before + 2 else "", "more looks")
        text = scrape(url)
        assert "qtrace_vms_refused{" not in text
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
        assert "Traceback" not in said, said
        assert process.wait(TIMEOUT_S) == 0


def once(*within: object) -> subprocess.CompletedProcess[str]:
    command = [*within, sys.executable, "-m", "qtrace", "monitor", "--once"]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_once_prints_the_metrics_and_its_status_says_whether_something_is_wrong() -> None:
    with hung_guest(find_qemu(), "tcg"):
        run = once()
    assert run.returncode == 1
    assert re.search(r'^qtrace_findings\{kind="stuck",vm="qtrace-lab.*"\} 1\.0$', run.stdout, re.M)
    assert run.stdout.endswith("# EOF\n")
    # Where there are no other QEMUs than this one.
    qemu = f"{find_qemu()} -name alone -S -accel tcg -m 16 -nodefaults -display none"
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    run = once(*alone, "sh", "-c", f'{qemu} & exec "$@"', "sh")
    assert run.returncode == 0, run.stdout
    assert values(run.stdout, "qtrace_main_loop_stuck_seconds", "alone") == [0.0]


def test_a_crash_is_told_once_although_nobody_has_waited_for_it(tmp_path: Path) -> None:
    """Until its parent does, it is a process like others."""
    told = tmp_path / "told"
    name = ("-name", "crashes-once")
    with (
        Guest(find_qemu(), firmware="idle", extra_args=name) as guest,
        monitor("--looks-only", "--on-finding", f'echo "$QTRACE_PID|$QTRACE_KIND" >> {told}') as (
            _,
            url,
        ),
    ):
        until(lambda: str(values(scrape(url), "qtrace_look_age_seconds", name[1]) or ""), "it")
        os.kill(guest.pid, signal.SIGSEGV)
        line = f"{guest.pid}|crashed"
        until(lambda: line if told.exists() and line in told.read_text() else "", "the crash")
        # One that starts after it is seen after it.
        with Guest(find_qemu(), firmware="idle", extra_args=("-name", "later")):
            until(lambda: str(values(scrape(url), "qtrace_look_age_seconds", "later") or ""), "it")
        assert told.read_text().splitlines().count(line) == 1
        assert not values(scrape(url), "qtrace_look_age_seconds", name[1])


def test_only_guests_of_a_name_are_watched_where_one_is_given() -> None:
    arguments = {name: ("-name", name) for name in ("is-wanted", "is-not-wanted")}
    with (
        Guest(find_qemu(), firmware="idle", extra_args=arguments["is-not-wanted"]),
        monitor("--looks-only", "--name", "is-w*") as (_, url),
        Guest(find_qemu(), firmware="idle", extra_args=arguments["is-wanted"]),
    ):
        until(lambda: str(values(scrape(url), "qtrace_looks_total", "is-wanted") or ""), "a look")
        assert set(re.findall(r'vm="([^"]*)"', scrape(url))) == {"is-wanted"}
