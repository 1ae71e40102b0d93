"""``qtrace monitor``: every QEMU of this host, as metrics that are right during a hang."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrace.cli.options import DURATION, SIZE
from qtrace.cli.signals import Signals
from qtrace.errors import ExitStatus, ExtraMissing

if TYPE_CHECKING:
    from qtrace.monitor.commands import Commands
    from qtrace.monitor.host_watch import HostWatch, News
    from qtrace.monitor.log import Log

PORT = 9911
ONCE_LIMIT_S = 30.0
ASSETS = {"alerts": "alerts.yml", "dashboard": "dashboard.json", "unit": "qtrace-monitor.service"}
EXAMPLES = """\b
Examples:
  qtrace monitor                             http://127.0.0.1:9911/metrics
  qtrace monitor --autopsies /var/lib/qtrace  keep an autopsy of each finding
  qtrace monitor --once                      print the metrics, and end
  qtrace monitor --print alerts              rules for Prometheus"""


@click.command(epilog=EXAMPLES)
@click.option("--listen", default=f"127.0.0.1:{PORT}", show_default=True, metavar="HOST:PORT")
@click.option(
    "--tls-cert", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Serve https with this certificate (PEM).",
)  # fmt: skip
@click.option(
    "--tls-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="The certificate's key.",
)  # fmt: skip
@click.option(
    "--client-ca", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Answer those alone who have a certificate of this authority.",
)  # fmt: skip
@click.option(
    "--every", type=DURATION, default=2.0, show_default="2s", metavar="TIME",
    help="Between two looks at a QEMU.",
)  # fmt: skip
@click.option(
    "--autopsies", type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    metavar="DIR", help="Keep an autopsy of each QEMU with a finding here.",
)  # fmt: skip
@click.option(
    "--keep", type=SIZE, default=1 << 30, show_default="1G", metavar="SIZE",
    help="What autopsies may take; the oldest are removed.",
)  # fmt: skip
@click.option(
    "--on-finding", metavar="CMD",
    help="Run by sh for each finding, with QTRACE_VM, _PID, _KIND, _SENTENCE.",
)  # fmt: skip
@click.option(
    "--flight", type=DURATION, default=0.0, metavar="TIME",
    help="Keep each QEMU's last events so long; with a finding they go to --autopsies DIR.",
)  # fmt: skip
@click.option(
    "--name", "names", multiple=True, metavar="GLOB",
    help="Watch the guests of that name (-name) alone.",
)  # fmt: skip
@click.option(
    "--stats", multiple=True, metavar="GLOB",
    help="Histograms of how long bottom halves take, and wait, of guests of that name.",
)  # fmt: skip
@click.option("--waits/--no-waits", default=True, help="With --stats: how long they wait, too.")
@click.option("--looks-only", is_flag=True, help="Set no probes.")
@click.option("--programs", is_flag=True, help="Watch qemu-img, qemu-nbd and qemu-io, too.")
@click.option("--once", is_flag=True, help="Look until it is known, print the metrics, and end.")
@click.option("--print", "asset", type=click.Choice(sorted(ASSETS)), help="Print a file, and end.")
def command(
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    every: float,
    autopsies: Path | None,
    keep: int,
    on_finding: str | None,
    flight: float,
    names: tuple[str, ...],
    stats: tuple[str, ...],
    waits: bool,
    looks_only: bool,
    programs: bool,
    once: bool,
    asset: str | None,
) -> int:
    """Watch every QEMU of this host, as metrics for Prometheus.

    Nothing is asked of QEMU, nothing is stopped: a hang is told while it lasts. Rare probes (QMP
    commands, jobs, snapshot bottom halves) need CAP_BPF and CAP_PERFMON, too; looks need
    CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. Who listens, and who reads the probes, has no rights.

    Exit status: 0; 3 it cannot listen; with --once 1, something is wrong with some QEMU, 4, it
    cannot be told of one.
    """
    if asset is not None:
        folder = resources.files("qtrace.monitor") / "assets"
        click.echo((folder / ASSETS[asset]).read_text(encoding="utf-8"), nl=False)
        return ExitStatus.OK
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 0xFFFF:
        raise click.UsageError(f"--listen takes HOST:PORT, not {listen!r}")
    if (tls_cert is None) != (tls_key is None) or (client_ca and tls_cert is None):
        raise click.UsageError("--tls-cert and --tls-key go together, --client-ca goes with them")
    if flight and (autopsies is None or looks_only):
        raise click.UsageError("--flight takes --autopsies DIR, where the files go, and probes")
    if stats and looks_only:
        raise click.UsageError("--stats takes probes: leave --looks-only out")
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ExtraMissing("monitor", "prometheus-client is not installed") from None
    from qtrace.monitor.commands import Commands
    from qtrace.monitor.listener_process import Address, Listener
    from qtrace.monitor.log import Log
    from qtrace.monitor.looker_rights import go_ahead_of_others, keep_what_looks_take
    from qtrace.monitor.rights import allow_descriptors

    if once:
        from qtrace.monitor.host_watch import HostWatch

        return _once(HostWatch(min(every, 0.5), names=names))
    listener = Listener(Address(host.strip("[]"), int(port), tls_cert, tls_key, client_ca))
    allow_descriptors()
    commands = Commands(on_finding) if on_finding else None
    go_ahead_of_others()
    keep_what_looks_take(autopsies, probing=not looks_only)
    # What has threads of its own comes from here on: they have no rights that were given up.
    from qtrace.monitor.host_watch import HostWatch
    from qtrace.monitor.service import Autopsies, run
    from qtrace.monitor.vm_sums import VmSums

    log = Log()
    sums = VmSums(stats, waits=waits) if stats else None
    watch = HostWatch(
        every, probing=not looks_only, programs=programs, names=names, last_s=flight, sums=sums
    )
    kept = Autopsies(autopsies, keep) if autopsies else None
    try:
        with Signals() as signals:
            scheme = "https" if tls_cert else "http"
            log.say(f"listening on {scheme}://{host}:{listener.port}/metrics")
            if missing := watch.no_probes:
                log.say(f"no probes, only looks: {missing}")
            run(
                watch, listener, kept,
                lambda news, file, last: _say(log, news, file, last, commands),
                lambda lines: _warn(log, lines), lambda: log.dropped,
                lambda: bool(signals.reason),
            )  # fmt: skip
    finally:
        watch.close()
        listener.close()
        if kept:
            kept.close()
        if commands:
            commands.close()
        log.close()
    return ExitStatus.OK


def _say(
    log: Log, news: News, autopsy: Path | None, last: Path | None, commands: Commands | None
) -> None:
    from qtrace.cli.views.verdict_view import inert
    from qtrace.monitor import journal

    sentence = inert(news.finding.sentence)
    facts = {"VM": inert(news.vm), "PID": str(news.pid), "KIND": news.finding.kind,
             "SENTENCE": sentence}  # fmt: skip
    fields = {f"QTRACE_{key}": value for key, value in facts.items()}
    told = f"; autopsy: {autopsy}" if autopsy else ""
    told += f"; last events: {last}" if last else ""
    message = f"{facts['VM']} (pid {news.pid}): {news.finding.kind}: {sentence}{told}"
    files = {"QTRACE_AUTOPSY": autopsy, "QTRACE_FLIGHT": last}
    kept = {name: str(file) for name, file in files.items() if file}
    in_journal = {"MESSAGE_ID": journal.FINDING, **fields, **kept}
    if not (journal.is_stderr() and journal.send(message, journal.ERROR, in_journal)):
        log.say(message)
    if commands:
        commands.run(fields)


def _warn(log: Log, lines: str) -> None:
    from qtrace.monitor import journal

    what, _, how = lines.partition("\n")
    if not (journal.is_stderr() and journal.send(f"{what}; {how}", journal.WARNING, {})):
        log.say(f"warning: {lines}")


def _once(watch: HostWatch) -> int:
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest

    from qtrace.monitor.metrics import HostCollector
    from qtrace.monitor.watched_vm import PROVEN_AFTER_S

    began = time.monotonic()
    watch.refresh()
    while not (enough := watch.all_seen(PROVEN_AFTER_S)):
        if time.monotonic() - began >= ONCE_LIMIT_S:
            break
        time.sleep(0.1)
    state = watch.state
    registry = CollectorRegistry()
    registry.register(HostCollector(lambda: state))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    click.echo(text.decode(), nl=False)
    if any(one.known and one.findings for one in state.vms):
        return ExitStatus.FINDING
    unclear = state.refused or any(one.inconclusive or not one.known for one in state.vms)
    unclear = unclear or not enough
    return ExitStatus.INCONCLUSIVE if unclear else ExitStatus.OK
